"""Celery task that runs the ticks of experiments; beat schedules it."""

from __future__ import annotations

from celery import shared_task

from apps.experiments.ticks import tick_experiments


@shared_task(name="experiments.refresh_results")
def refresh_results_task() -> None:
    tick_experiments()
