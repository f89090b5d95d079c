"""Counts of refused outcomes: by metric, reason, and where they came from. Names come from outside
and have no end, so that only so many unknown ones are told apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection

from apps.experiments.models import Metric, RefusedOutcomes
from contract.messages import Batch
from contract.refusals import OTHER_METRICS, UNKNOWN_METRIC

TEXT_MAX = 200
NAME_MAX = 100
# Refusals of so many unknown metrics are told apart.
UNKNOWN_METRICS_MAX = 100
# What an instance may say that it refused since its last message.
COUNT_MAX = 1_000_000_000
COUNT_REFUSALS = """
    INSERT INTO experiments_refusedoutcomes AS kept
        (metric_name, reason, sender, via, count, last_at)
    SELECT name, reason, sender, via, n, %s
    FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::bigint[])
        AS refused(name, reason, sender, via, n)
    ON CONFLICT (metric_name, reason, sender, via) DO UPDATE SET
        count = kept.count + excluded.count, last_at = greatest(kept.last_at, excluded.last_at)
"""


@dataclass(frozen=True)
class Origin:
    """Who sent outcomes: a tenant or a user, or nobody known; and through which instance, or
    otherwise.
    """

    sender: str = ""
    via: str = ""


NOWHERE = Origin()


@dataclass(frozen=True)
class Refusal:
    """Why the outcome at `index` of a request was not taken."""

    index: int
    event_id: str
    metric: str
    reason: str
    origin: Origin = NOWHERE


def count_of_instances(batches: Sequence[Batch], now: datetime) -> None:
    """Add what data planes refused, and told their clients."""
    counts: Counter[tuple[str, str, Origin]] = Counter()
    for batch in batches:
        for each in batch.refusals:
            origin = Origin(clean(each.tenant), clean(batch.instance, TEXT_MAX))
            reason = clean(each.reason, TEXT_MAX)
            counts[clean(each.metric), reason, origin] += min(max(each.count, 0), COUNT_MAX)
    names = sorted({name for name, _, _ in counts})
    known = set(Metric.objects.filter(name__in=names).values_list("name", flat=True))
    _add_refusals(counts, known=known, now=now)


def count_refusals(refused: Sequence[Refusal], *, known: set[str], now: datetime) -> None:
    """Add refusals to the counts; past a bound, unknown names share one."""
    counts = Counter((clean(each.metric), each.reason, each.origin) for each in refused)
    _add_refusals(counts, known=known, now=now)


def _add_refusals(
    counts: Counter[tuple[str, str, Origin]], *, known: set[str], now: datetime
) -> None:
    if not counts:
        return
    told_apart = _told_apart({name for name, _, _ in counts} - known) | known
    rows: Counter[tuple[str, str, str, str]] = Counter()
    for (name, reason, origin), count in counts.items():
        shown = name if name in told_apart else OTHER_METRICS
        rows[shown, reason, origin.sender, origin.via] += count
    keys = sorted(rows)
    columns: list[list[Any]] = [[key[i] for key in keys] for i in range(4)]
    with connection.cursor() as cursor:
        cursor.execute(COUNT_REFUSALS, [now, *columns, [rows[key] for key in keys]])


def _told_apart(names: set[str]) -> set[str]:
    """Return those of the unknown metric `names` that are, or may yet be, counted by name."""
    if not names:
        return set()
    rows = RefusedOutcomes.objects.filter(reason=UNKNOWN_METRIC)
    stored = set(rows.values_list("metric_name", flat=True).distinct())
    room = max(0, UNKNOWN_METRICS_MAX - len(stored))
    return (names & stored) | set(sorted(names - stored)[:room])


def clean(name: str, length_max: int = NAME_MAX) -> str:
    """Return what of an outsider's name can stand in a column."""
    return name.replace("\x00", "")[:length_max]
