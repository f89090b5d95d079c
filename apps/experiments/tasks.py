"""Celery's ticks over experiments; beat calls again."""

from __future__ import annotations

from celery import shared_task

from apps.experiments.imports.services import import_some
from apps.experiments.meetings import forget_meetings
from apps.experiments.ticks import RESULTS_TURN, tick_experiments
from apps.lib.clock import database_now
from apps.models.turns import take_turn


@shared_task(name="experiments.refresh_results")
def refresh_results_task() -> None:
    tick_experiments()


@shared_task(name="experiments.import_outcomes")
def import_outcomes_task() -> None:
    # It takes turns with results, so that the ticks of rollouts never wait for either.
    with take_turn(RESULTS_TURN) as is_ours:
        if is_ours:
            import_some()


@shared_task(name="experiments.prune")
def prune_task() -> None:
    forget_meetings(database_now())
