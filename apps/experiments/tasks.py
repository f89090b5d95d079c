"""Celery's ticks over experiments; beat calls again."""

from __future__ import annotations

from celery import shared_task

from apps.experiments.meetings import forget_meetings
from apps.experiments.shadow_pairs import forget_pairs
from apps.experiments.ticks import tick_experiments
from apps.lib.clock import database_now


@shared_task(name="experiments.refresh_results")
def refresh_results_task() -> None:
    tick_experiments()


@shared_task(name="experiments.prune")
def prune_task() -> None:
    now = database_now()
    forget_meetings(now)
    forget_pairs(now)
