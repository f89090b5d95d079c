"""Counts refused messages by instance, channel and reason, for operators."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta

from django.db import connection

from apps.identity.models import Refusal

Reason = Refusal.Reason
# Refusals are shown for this long after the last one.
SHOWN = timedelta(hours=24)
KEPT = timedelta(days=30)
# Keys: (instance or empty, channel, reason).
Counts = Counter[tuple[str, str, str]]

COUNT = """
    INSERT INTO identity_refusal (instance, channel, reason, count, first_at, last_at)
    SELECT instance, channel, reason, count, clock_timestamp(), clock_timestamp()
    FROM unnest(%s::text[], %s::text[], %s::text[], %s::bigint[])
        AS new(instance, channel, reason, count)
    ON CONFLICT (instance, channel, reason) DO UPDATE
    SET count = identity_refusal.count + EXCLUDED.count, last_at = EXCLUDED.last_at
"""


def count_refusals(counts: Counts) -> None:
    """Add to the stored counts."""
    if not counts:
        return
    # Rows are locked in one order everywhere, which prevents deadlocks.
    rows = [(*map(str, key), number) for key, number in sorted(counts.items())]
    with connection.cursor() as cursor:
        cursor.execute(COUNT, [list(column) for column in zip(*rows, strict=True)])


def recent_refusals(now: datetime) -> list[Refusal]:
    """Return the refusals of the last 24 hours, latest first."""
    return list(Refusal.objects.filter(last_at__gte=now - SHOWN))


def prune_refusals(now: datetime) -> None:
    Refusal.objects.filter(last_at__lt=now - KEPT).delete()
