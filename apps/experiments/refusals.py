"""Count refused outcomes by metric, reason and origin.

Clients choose metric names freely, so at most `UNKNOWN_METRICS_MAX` unknown names are counted
separately.
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
# Maximum number of unknown metric names that are counted separately.
UNKNOWN_METRICS_MAX = 100
# Maximum count of refusals in one message of an instance.
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
    """Sender of outcomes (a tenant, a user, or empty if unknown) and their way in.

    `via` is an instance, `REST API` or `file`.
    """

    sender: str = ""
    via: str = ""


NOWHERE = Origin()


@dataclass(frozen=True)
class Refusal:
    """Why the outcome at `index` of a request was refused."""

    index: int
    event_id: str
    metric: str
    reason: str
    origin: Origin = NOWHERE


def count_instance_refusals(batches: Sequence[Batch], now: datetime) -> None:
    """Add the refusals that data planes counted; their clients have been notified."""
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
    """Add refusals to the counts; unknown names beyond the limit share one count."""
    counts = Counter((clean(each.metric), each.reason, each.origin) for each in refused)
    _add_refusals(counts, known=known, now=now)


def _add_refusals(
    counts: Counter[tuple[str, str, Origin]], *, known: set[str], now: datetime
) -> None:
    if not counts:
        return
    separate = _separate_names({name for name, _, _ in counts} - known) | known
    rows: Counter[tuple[str, str, str, str]] = Counter()
    for (name, reason, origin), count in counts.items():
        shown = name if name in separate else OTHER_METRICS
        rows[shown, reason, origin.sender, origin.via] += count
    keys = sorted(rows)
    columns: list[list[Any]] = [[key[i] for key in keys] for i in range(4)]
    with connection.cursor() as cursor:
        cursor.execute(COUNT_REFUSALS, [now, *columns, [rows[key] for key in keys]])


def _separate_names(names: set[str]) -> set[str]:
    """Return the unknown metric `names` that have, or can still get, a count of their own."""
    if not names:
        return set()
    rows = RefusedOutcomes.objects.filter(reason=UNKNOWN_METRIC)
    stored = set(rows.values_list("metric_name", flat=True).distinct())
    room = max(0, UNKNOWN_METRICS_MAX - len(stored))
    return (names & stored) | set(sorted(names - stored)[:room])


def clean(name: str, length_max: int = NAME_MAX) -> str:
    """Return an external name without NUL characters, cut to the column's length."""
    return name.replace("\x00", "")[:length_max]
