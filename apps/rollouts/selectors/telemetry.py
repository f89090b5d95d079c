"""Traffic from telemetry windows; every query has a time range.

Latency histograms are summed in the database, which returns one row per histogram bucket instead
of one per window.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from django.db import connection
from django.db.models import Count, Max, Sum

from apps.rollouts.models import TelemetryRow
from contract import histogram
from contract.histogram import Counts

Arms = Literal["version_number", "variant"]

MINUTE = timedelta(minutes=1)
POINTS_MAX = 150
WIDTHS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1_800, 3_600)


@dataclass(frozen=True)
class Traffic:
    """Traffic of `span_s` seconds. Rates and quantiles are None without requests.

    `requests` reached a version; `cache_hits` were answered from the cache and are in no other
    count.
    """

    span_s: float
    requests: int = 0
    errors: int = 0
    latency: Counts = field(default_factory=dict)
    cache_hits: int = 0

    @property
    def per_second(self) -> float:
        return (self.requests + self.cache_hits) / self.span_s

    @property
    def hit_rate(self) -> float | None:
        """The share that the cache answered."""
        answered = self.requests + self.cache_hits
        return self.cache_hits / answered if answered else None

    @property
    def error_rate(self) -> float | None:
        return self.errors / self.requests if self.requests else None

    @property
    def p50_us(self) -> float | None:
        return histogram.quantile_us(self.latency, 0.5)

    @property
    def p95_us(self) -> float | None:
        return histogram.quantile_us(self.latency, 0.95)


@dataclass(frozen=True)
class Point(Traffic):
    """Traffic of one arm in the `span_s` seconds from `at`; `units` are distinct units."""

    at: datetime = datetime.min
    arm: str = ""
    units: int = 0


def add_up(parts: Iterable[Traffic], span_s: float) -> Traffic:
    """Return the sum of the parts, which cover the same `span_s` seconds."""
    parts = list(parts)
    return Traffic(
        span_s=span_s,
        requests=sum(part.requests for part in parts),
        errors=sum(part.errors for part in parts),
        cache_hits=sum(part.cache_hits for part in parts),
        latency=histogram.merge(part.latency for part in parts),
    )


def last_minute(now: datetime, model_name: str | None = None) -> dict[str, dict[str, Traffic]]:
    """Return `{model: {version: traffic}}` of the minute up to `now`."""
    windows = TelemetryRow.objects.filter(ended_at__gt=now - MINUTE, ended_at__lte=now)
    if model_name is not None:
        windows = windows.filter(model_name=model_name)
    counts = windows.values("model_name", "version_number").annotate(
        all_requests=Sum("requests"), all_errors=Sum("errors"), all_hits=Sum("cache_hits")
    )
    latencies: defaultdict[tuple[str, str], Counts] = defaultdict(dict)
    for model, version, index, count in _minute_latencies(now, model_name):
        latencies[model, version][index] = count
    traffic: defaultdict[str, dict[str, Traffic]] = defaultdict(dict)
    for row in counts:
        key = row["model_name"], row["version_number"]
        traffic[key[0]][key[1]] = Traffic(
            span_s=MINUTE.total_seconds(),
            requests=row["all_requests"],
            errors=row["all_errors"],
            cache_hits=row["all_hits"],
            latency=latencies[key],
        )
    return dict(traffic)


def minute_stamp(now: datetime, model_name: str | None = None) -> tuple[object, ...]:
    """Return values that change whenever `last_minute` changes."""
    windows = TelemetryRow.objects.filter(ended_at__gt=now - MINUTE, ended_at__lte=now)
    if model_name is not None:
        windows = windows.filter(model_name=model_name)
    return tuple(windows.aggregate(Max("id"), Count("id")).values())


def width_of(span: timedelta) -> int:
    """Return the bin width in seconds that gives at most POINTS_MAX points per arm."""
    width_min_s = span.total_seconds() / POINTS_MAX
    return next((width for width in WIDTHS_S if width >= width_min_s), WIDTHS_S[-1])


def series(
    model_name: str,
    *,
    since: datetime,
    until: datetime,
    by: Arms,
    variants: Sequence[str] = (),
    split: str = "",
) -> list[Point]:
    """Return points ordered by time, with one arm for each version or variant.

    With `variants` only their windows count; with `split` only the canary of that rollout, as the
    span may include the canary of another rollout. An incomplete last bin is left out, because it
    would look like a drop of traffic.
    """
    width_s = width_of(until - since)
    values: dict[str, Any] = {
        "model": model_name,
        "since": since,
        "until": until,
        "by": by,
        "width": timedelta(seconds=width_s),
        "variants": list(variants),
        "split": split,
    }
    latencies: defaultdict[tuple[datetime, str], Counts] = defaultdict(dict)
    for at, arm, index, count in _rows(SERIES_LATENCY, values):
        latencies[at, arm][int(index)] = int(count)
    return [
        Point(
            at=at.astimezone(UTC),
            arm=arm,
            span_s=width_s,
            requests=int(requests),
            errors=int(errors),
            cache_hits=int(hits),
            units=int(units),
            latency=latencies[at, arm],
        )
        for at, arm, requests, errors, hits, units in _rows(SERIES_COUNTS, values)
        if at + values["width"] <= until
    ]


# A window counts at its end. Bins start at the Unix epoch, so that polls give the same ones.
SERIES_COUNTS = """
    SELECT date_bin(%(width)s, ended_at, 'epoch'::timestamptz) AS at,
           CASE %(by)s WHEN 'variant' THEN variant ELSE version_number END AS arm,
           sum(requests), sum(errors), sum(cache_hits),
           -- Older data planes do not count assigned units. Per bin, as responses come later.
           coalesce(nullif(sum(assigned), 0), sum(units + anonymous))
    FROM rollouts_telemetryrow
    WHERE model_name = %(model)s AND ended_at > %(since)s AND ended_at <= %(until)s
      AND (cardinality(%(variants)s::text[]) = 0 OR variant = ANY(%(variants)s))
      AND (%(split)s = '' OR variant <> 'canary' OR split = %(split)s)
    GROUP BY 1, 2 ORDER BY 1, 2
"""
SERIES_LATENCY = """
    SELECT date_bin(%(width)s, ended_at, 'epoch'::timestamptz) AS at,
           CASE %(by)s WHEN 'variant' THEN variant ELSE version_number END AS arm,
           bucket.key::int, sum(bucket.value::bigint)
    FROM rollouts_telemetryrow, jsonb_each_text(latency) AS bucket
    WHERE model_name = %(model)s AND ended_at > %(since)s AND ended_at <= %(until)s
      AND (cardinality(%(variants)s::text[]) = 0 OR variant = ANY(%(variants)s))
      AND (%(split)s = '' OR variant <> 'canary' OR split = %(split)s)
    GROUP BY 1, 2, 3
"""
MINUTE_LATENCY = """
    SELECT model_name, version_number, bucket.key::int, sum(bucket.value::bigint)
    FROM rollouts_telemetryrow, jsonb_each_text(latency) AS bucket
    WHERE ended_at > %(since)s AND ended_at <= %(until)s
      AND (%(model)s::text IS NULL OR model_name = %(model)s)
    GROUP BY 1, 2, 3
"""


def _minute_latencies(now: datetime, model_name: str | None) -> list[tuple[str, str, int, int]]:
    rows = _rows(MINUTE_LATENCY, {"since": now - MINUTE, "until": now, "model": model_name})
    return [(model, version, int(index), int(count)) for model, version, index, count in rows]


def _rows(sql: str, values: dict[str, Any]) -> list[tuple]:  # type: ignore[type-arg]
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return list(cursor.fetchall())
