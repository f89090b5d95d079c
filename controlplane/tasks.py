"""The Celery task of retention, which beat schedules."""

from __future__ import annotations

from celery import shared_task

from apps.lib.clock import database_now
from controlplane.retention.run import run_retention


@shared_task(name="retention.run")
def retention_task() -> None:
    run_retention(database_now())
