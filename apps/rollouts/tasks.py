"""Celery's ticks over rollouts. Each does what is due and returns; beat calls again."""

from __future__ import annotations

from datetime import timedelta

from celery import shared_task

from apps.lib.clock import database_now
from apps.rollouts.candidates import start_candidates
from apps.rollouts.drift import publish_drift
from apps.rollouts.models import IngestedBatch, PublishedTable, ShadowRow, TelemetryRow
from apps.rollouts.references import KEEP_TELEMETRY
from apps.rollouts.retirement import retire_versions
from apps.rollouts.tick import tick_rollouts
from apps.rollouts.watch import watch_ends, watch_traffic

KEEP_BATCHES = timedelta(days=2)
KEEP_TABLES = 1_000


@shared_task(name="rollouts.tick")
def tick_task() -> None:
    tick_rollouts()
    publish_drift()
    retire_versions()


@shared_task(name="rollouts.watch_traffic")
def watch_traffic_task() -> None:
    watch_traffic(database_now())


@shared_task(name="rollouts.watch_ends")
def watch_ends_task() -> None:
    watch_ends(database_now())


@shared_task(name="rollouts.start_candidates")
def start_candidates_task() -> None:
    start_candidates()


@shared_task(name="rollouts.prune")
def prune_task() -> None:
    """Delete what no page, check or redelivery can need any more."""
    now = database_now()
    TelemetryRow.objects.filter(ended_at__lt=now - KEEP_TELEMETRY).delete()
    ShadowRow.objects.filter(ended_at__lt=now - KEEP_TELEMETRY).delete()
    IngestedBatch.objects.filter(at__lt=now - KEEP_BATCHES).delete()
    # By their number and not by their generation, which leaps where an epoch begins.
    kept = PublishedTable.objects.order_by("-generation").values_list("generation", flat=True)
    for oldest in kept[KEEP_TABLES - 1 : KEEP_TABLES]:
        PublishedTable.objects.filter(generation__lt=oldest).delete()
