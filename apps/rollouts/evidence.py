"""What was seen of canary and stable over the same seconds: telemetry windows become intervals.

An interval is one check interval inside one step. A window belongs to a step by its generation, so
that traffic of an instance that was late with a table is not counted for the next step. Intervals
are never pooled over steps. Only closed ones are judged, and they are frozen when first seen closed
(`apps.rollouts.frozen`): evidence that was looked at never changes.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db import connection

from apps.rollouts.models import Rollout
from contract.histogram import Counts
from contract.messages import ClusterCounts
from contract.routing import CANARY, STABLE

# How long after its end an interval may still get windows: their length, and the way here.
GRACE = timedelta(seconds=3)
# Windows that come later than so long after their interval are shown and no longer judged.
LOOK_BACK = timedelta(hours=1)


@dataclass
class Arm:
    """One side of an interval. `n` counts units (and requests without one), `errors` of those.

    `assigned` are those that the split sent there, whatever became of them: also who was answered
    from a cache. `unanswered` are those of them whom the version left a request without an answer.
    `clusters` are the same counts by cluster of units.
    """

    n: int = 0
    errors: int = 0
    requests: int = 0
    latency: Counts = field(default_factory=dict)
    assigned: int = 0
    unanswered: int = 0
    clusters: dict[int, ClusterCounts] = field(default_factory=dict)


@dataclass
class Interval:
    step_index: int
    started_at: datetime
    canary: Arm = field(default_factory=Arm)
    control: Arm = field(default_factory=Arm)


def closed_intervals(
    rollout: Rollout, interval_s: int, now: datetime, *, control: str = STABLE
) -> list[Interval]:
    """Return the rollout's intervals of late that get no more windows, oldest first.

    `control` is the variant that the canary is compared with.
    """
    until = now - timedelta(seconds=interval_s) - GRACE
    found: dict[tuple[int, datetime], Interval] = {}
    for generation, started_at, variant, n, errors, requests, assigned, unanswered in _rows(
        COUNTS, rollout, control, until
    ):
        arm = _arm(found, rollout, generation, started_at, variant)
        arm.n += n
        arm.errors += errors
        arm.requests += requests
        arm.assigned += assigned
        arm.unanswered += unanswered
    for generation, started_at, variant, index, count in _rows(LATENCIES, rollout, control, until):
        arm = _arm(found, rollout, generation, started_at, variant)
        arm.latency[index] = arm.latency.get(index, 0) + count
    _add_clusters(found, rollout, control, until)
    return [found[key] for key in sorted(found)]


def _add_clusters(
    found: dict[tuple[int, datetime], Interval], rollout: Rollout, control: str, until: datetime
) -> None:
    # Histograms come first: a struct that is complete is not changed again.
    latencies: dict[tuple[int, datetime, str, int], Counts] = {}
    for *key, index, count in _rows(CLUSTER_LATENCIES, rollout, control, until):
        latencies.setdefault(tuple(key), {})[index] = count
    for *key, units, assigned, unanswered, n, errors in _rows(CLUSTERS, rollout, control, until):
        generation, started_at, variant, cluster = key
        arm = _arm(found, rollout, generation, started_at, variant)
        latency = latencies.get((generation, started_at, variant, cluster), {})
        more = ClusterCounts(units, assigned, unanswered, n, errors, latency)
        before = arm.clusters.get(cluster)
        arm.clusters[cluster] = more if before is None else before.merge(more)


def _arm(
    found: dict[tuple[int, datetime], Interval],
    rollout: Rollout,
    generation: int,
    started_at: datetime,
    variant: str,
) -> Arm:
    step_index = bisect_right(rollout.step_generations, generation) - 1
    key = (step_index, started_at)
    interval = found.setdefault(key, Interval(step_index, started_at))
    return interval.canary if variant == CANARY else interval.control


WINDOWS = """
    FROM rollouts_telemetryrow
    WHERE split = %s AND generation >= %s AND variant IN ('canary', %s)
      AND interval_started_at > %s AND interval_started_at <= %s
"""
COUNTS = f"""
    SELECT generation, interval_started_at, variant, sum(units + anonymous),
           sum(unit_errors + anonymous_errors), sum(requests),
           sum(greatest(assigned, units + anonymous)), sum(unanswered)
    {WINDOWS} GROUP BY 1, 2, 3
"""
CLUSTERS = f"""
    SELECT generation, interval_started_at, variant, cluster.key::int,
           sum((cluster.value->>0)::int), sum((cluster.value->>1)::int),
           sum((cluster.value->>2)::int), sum((cluster.value->>3)::int),
           sum((cluster.value->>4)::int)
    {WINDOWS.replace("WHERE", ", jsonb_each(clusters) AS cluster WHERE", 1)} GROUP BY 1, 2, 3, 4
"""
CLUSTER_LATENCIES = f"""
    SELECT generation, interval_started_at, variant, cluster.key::int, bucket.key::int,
           sum(bucket.value::int)
    {
    WINDOWS.replace(
        "WHERE",
        ", jsonb_each(clusters) AS cluster, jsonb_each_text(cluster.value->5) AS bucket WHERE",
        1,
    )
} GROUP BY 1, 2, 3, 4, 5
"""
LATENCIES = f"""
    SELECT generation, interval_started_at, variant, bucket.key::int, sum(bucket.value::int)
    {WINDOWS.replace("WHERE", ", jsonb_each_text(latency) AS bucket WHERE", 1)} GROUP BY 1, 2, 3, 4
"""


def _rows(sql: str, rollout: Rollout, control: str, until: datetime) -> list[tuple]:  # type: ignore[type-arg]
    first = rollout.step_generations[0] if rollout.step_generations else 0
    with connection.cursor() as cursor:
        cursor.execute(sql, [str(rollout.pk), first, control, until - LOOK_BACK, until])
        return [(row[0], row[1], row[2], *map(int, row[3:])) for row in cursor.fetchall()]


@dataclass(frozen=True)
class LatencyReference:
    """Stable's usual latency, frozen before the data that is judged by it: histogram buckets.

    `p50`, `p95` and `p99` are the buckets of those quantiles with the plan's slack added. `p50` is
    None in rollouts that froze theirs before it was kept.
    """

    p95: int
    p99: int
    n: int
    frozen_at: datetime
    p50: int | None = None
    # When the first of the answers was given; None where it was not kept.
    since: datetime | None = None
