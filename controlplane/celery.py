"""The Celery app of the workers; `beat` has its own.

Celery only triggers work: every task processes the rows that are due and holds no state.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.signals import task_success

from controlplane import broker

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")
# Django's checks load every page, which a worker does not need; the tests run the checks.
os.environ.setdefault("CELERY_SKIP_CHECKS", "1")
# Celery would close a pool after each task; a worker process runs one task at a time.
os.environ["INTERLOCK_DATABASE_POOL"] = "0"

broker.use()
app = Celery("interlock")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@task_success.connect
def record_task_pulse(sender: Any, **_: Any) -> None:
    """Record a pulse of the loop that the task belongs to."""
    # Imported here: Django is set up when a task runs, and not before.
    from controlplane.loop_health import record_pulse

    record_pulse(sender.name)
