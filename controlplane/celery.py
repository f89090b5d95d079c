"""The workers' Celery app; beat has one of its own (`beat`). It only wakes: every task is a tick over rows, and none holds state."""

from __future__ import annotations

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")

app = Celery("interlock")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
