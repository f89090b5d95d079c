"""Runs the deletion of all kinds, bounded in time; a row per kind records the result.

A failure of one kind is recorded in its row and does not stop the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from time import monotonic

from django.conf import settings
from django.db import Error, transaction

from apps.lib.partitions import Freed
from controlplane.models import RetentionRun
from controlplane.retention.declared import KINDS, Kind
from controlplane.retention.drops import RULES, Pass, make_partitions

logger = logging.getLogger(__name__)

# Seconds of each minute: other tasks of the worker wait meanwhile.
WITHIN_S = 20.0
ERROR_LENGTH_MAX = 1_000


def run_retention(
    now: datetime, within_s: float = WITHIN_S, clock: Callable[[], float] = monotonic
) -> Freed:
    """Delete expired rows of each kind for about `within_s` seconds; return the freed space."""
    try:
        make_partitions(now)
    except Error as error:
        # New rows go to the rest partition and move when a later attempt succeeds.
        logger.warning("retention.no_partition: %s", error)
    freed = Freed()
    ends_at = clock() + within_s
    for position, kind in enumerate(KINDS):
        share_s = max(0.0, ends_at - clock()) / (len(KINDS) - position)
        freed += _run_kind(kind, now, clock() + share_s, clock)
    return freed


def _run_kind(kind: Kind, now: datetime, ends_at: float, clock: Callable[[], float]) -> Freed:
    days = settings.RETENTION_DAYS[kind.name]
    row, _ = RetentionRun.objects.get_or_create(name=kind.name, defaults={"ran_at": now})
    row.error = row.held = ""
    row.is_behind = False
    freed = Freed()
    try:
        if days:
            freed = _drop(kind, row, now - timedelta(days=days), ends_at, clock)
    except Error as error:
        row.error = str(error).strip()[:ERROR_LENGTH_MAX]
        logger.warning("retention.failed %s: %s", kind.name, row.error)
    row.ran_at = now
    _keep(row, freed, now)
    return freed


def _drop(
    kind: Kind, row: RetentionRun, cutoff: datetime, ends_at: float, clock: Callable[[], float]
) -> Freed:
    rule = RULES[kind.name]
    hold = rule.hold()
    row.held = hold.reason(cutoff)[:500]
    due = hold.cut(cutoff)
    freed = Freed()
    while True:
        step = rule.drop(Pass(due, row.mark))
        freed += step.freed
        if step.mark != row.mark:
            row.mark = step.mark
            row.save(update_fields=["mark"])
        if step.is_last:
            return freed
        if clock() >= ends_at:
            row.is_behind = True
            return freed


@transaction.atomic
def _keep(row: RetentionRun, freed: Freed, now: datetime) -> None:
    kept = RetentionRun.objects.select_for_update().get(pk=row.pk)
    row.rows_total, row.bytes_total = kept.rows_total, kept.bytes_total
    if freed.rows or freed.bytes:
        row.freed_at, row.rows, row.bytes = now, freed.rows, freed.bytes
        row.rows_total += freed.rows
        row.bytes_total += freed.bytes
        logger.info("retention.freed %s: %d rows, %d bytes", row.name, freed.rows, freed.bytes)
    row.save()
