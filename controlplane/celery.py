"""The workers' Celery app; beat has one of its own (`beat`). It only wakes: every task is a tick
over rows, and none holds state.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.signals import task_success

from controlplane import broker

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")
# Django's checks load every page, and a worker shows none; the tests make them.
os.environ.setdefault("CELERY_SKIP_CHECKS", "1")
# Celery would close a pool after each task; a worker's process does one thing at a time.
os.environ["INTERLOCK_DATABASE_POOL"] = "0"

broker.use()
app = Celery("interlock")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@task_success.connect
def note_turn(sender: Any, **_: Any) -> None:
    """Show that a loop turned: the task's name says which."""
    # Django is set up by the time a task runs, and not before.
    from controlplane.loop_health import record_pulse

    record_pulse(sender.name)
