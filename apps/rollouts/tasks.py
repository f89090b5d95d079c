"""Celery tasks of rollouts. Celery beat calls each one periodically."""

from __future__ import annotations

from celery import shared_task

from apps.lib.clock import database_now
from apps.rollouts.candidates import start_candidates
from apps.rollouts.divergence import watch_ends, watch_traffic
from apps.rollouts.models import PublishedTable
from apps.rollouts.retirement import retire_versions
from apps.rollouts.table_sync import publish_drift
from apps.rollouts.tick import tick_rollouts

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
    """Delete old routing tables; `controlplane.retention` deletes rows by age."""
    # By count and not by generation, which jumps at the start of an epoch.
    kept = PublishedTable.objects.order_by("-generation").values_list("generation", flat=True)
    for oldest in kept[KEEP_TABLES - 1 : KEEP_TABLES]:
        PublishedTable.objects.filter(generation__lt=oldest).delete()
