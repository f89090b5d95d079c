"""What was seen of canary and stable over the same seconds: telemetry windows become intervals.

An interval is one check interval inside one step. A window belongs to a step by its generation, so
that traffic of an instance that was late with a table is not counted for the next step. Intervals
are never pooled over steps. Only closed ones are judged, and they are frozen when first seen closed
(`apps.rollouts.frozen`): evidence that was looked at never changes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

import numpy as np
from django.db import connection
from numpy.typing import NDArray

from apps.rollouts.models import Rollout
from apps.rollouts.segments import SLICE_S_MIN, SLICES
from contract.histogram import Counts
from contract.messages import CLUSTERS, ClusterCounts
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
    `clusters` are the same counts by cluster of units, `slices` by time, SLICES of equal length:
    empty where they were not kept; `instances` by the data plane's instance that counted them.
    """

    n: int = 0
    errors: int = 0
    requests: int = 0
    latency: Counts = field(default_factory=dict)
    assigned: int = 0
    unanswered: int = 0
    clusters: dict[int, ClusterCounts] = field(default_factory=dict)
    slices: list[SliceCounts] = field(default_factory=list)
    instances: dict[str, SliceCounts] = field(default_factory=dict)

    @cached_property
    def grouped(self) -> Grouped:
        """The clusters as arrays; ask for it once the counts are complete."""
        return Grouped.of(self.clusters)

    @cached_property
    def histogram(self) -> NDArray[np.int64]:
        """The latency's buckets and their counts, `(2, buckets)`; ask as for `grouped`."""
        return np.array(list(self.latency.items()), dtype=np.int64).reshape(-1, 2).T


@dataclass(frozen=True)
class Grouped:
    """Clusters as arrays: a row each of `counts`, n, errors, assigned, unanswered, units.

    `cells` has a column for each bucket of each cluster's latency: the cluster, bucket, count.
    """

    counts: NDArray[np.float64]
    cells: NDArray[np.int64]

    @classmethod
    def of(cls, clusters: Mapping[int, ClusterCounts]) -> Grouped:
        counts = np.zeros((CLUSTERS, 5))
        for number, each in clusters.items():
            row = (each.n, each.errors, each.assigned, each.unanswered, each.units)
            counts[number % CLUSTERS] += row
        cells = [
            (number % CLUSTERS, bucket, count)
            for number, each in clusters.items()
            for bucket, count in each.latency.items()
        ]
        return cls(counts, np.array(cells, dtype=np.int64).reshape(-1, 3).T)


@dataclass
class SliceCounts:
    """What one slice of an interval, or one instance in it, counted; see Arm."""

    n: int = 0
    errors: int = 0
    assigned: int = 0
    unanswered: int = 0


@dataclass
class Interval:
    step_index: int
    started_at: datetime
    canary: Arm = field(default_factory=Arm)
    control: Arm = field(default_factory=Arm)


def closed_intervals(
    rollout: Rollout,
    interval_s: int,
    now: datetime,
    *,
    control: str = STABLE,
    lengths_s: Sequence[int] = (),
) -> list[Interval]:
    """Return the intervals of late that get no more windows and are not frozen, oldest first.

    `control` is the variant that the canary is compared with. Intervals last `interval_s` at most,
    and `lengths_s` by step where these differ.
    """
    until = now - timedelta(seconds=interval_s) - GRACE
    found: dict[tuple[int, datetime], Interval] = {}
    steps = _steps(rollout)
    lengths = (list(lengths_s) or [interval_s])[: len(steps)]
    lengths += lengths[-1:] * (len(steps) - len(lengths))
    for generation, started_at, variant, at, n, errors, requests, assigned, unanswered in _rows(
        COUNTS, rollout, control, until, [lengths, steps]
    ):
        arm = _arm(found, rollout, generation, started_at, variant)
        arm.n += n
        arm.errors += errors
        arm.requests += requests
        arm.assigned += assigned
        arm.unanswered += unanswered
        arm.slices = arm.slices or [SliceCounts() for _ in range(SLICES)]
        mine = arm.slices[at]
        mine.n += n
        mine.errors += errors
        mine.assigned += assigned
        mine.unanswered += unanswered
    for generation, started_at, variant, index, count in _rows(LATENCIES, rollout, control, until):
        arm = _arm(found, rollout, generation, started_at, variant)
        arm.latency[index] = arm.latency.get(index, 0) + count
    for generation, started_at, variant, instance, *counts in _rows(
        INSTANCES, rollout, control, until, keys=4
    ):
        arm = _arm(found, rollout, generation, started_at, variant)
        arm.instances[instance] = _merged(arm.instances.get(instance), counts)
    _add_clusters(found, rollout, control, until)
    for interval in found.values():
        for arm in (interval.canary, interval.control):
            _count_late_ends(arm)
            _settle(arm.slices)
    return [found[key] for key in sorted(found)]


def _merged(before: SliceCounts | None, counts: Sequence[int]) -> SliceCounts:
    if before is None:
        return SliceCounts(*counts)
    return SliceCounts(*(a + b for a, b in zip(astuple(before), counts, strict=True)))


def _count_late_ends(arm: Arm) -> None:
    """Count who was assigned in an interval before and left without an answer in this one.

    Where requests are few, a version that hangs may end more units in an interval than it was
    assigned: taking no more than these would lose just the evidence that it hangs.
    """
    late = arm.unanswered - arm.assigned
    if late > 0:
        arm.assigned += late
        if arm.slices:
            arm.slices[0].assigned += late


def _settle(slices: list[SliceCounts]) -> None:
    """Count each event in a slice that counted its unit.

    A unit counts once in an interval and may fail in a later slice than the one in which it first
    came: what a slice has too many of goes to where there is most room.
    """
    for events, exposures in (("errors", "n"), ("unanswered", "assigned")):
        for each in slices:
            surplus = getattr(each, events) - getattr(each, exposures)
            if surplus > 0:
                setattr(each, events, getattr(each, exposures))
                _spread(slices, surplus, events, exposures)


def _spread(slices: list[SliceCounts], surplus: int, events: str, exposures: str) -> None:
    def room(each: SliceCounts) -> int:
        return int(getattr(each, exposures) - getattr(each, events))

    for each in sorted(slices, key=room, reverse=True):
        taken = min(surplus, max(0, room(each)))
        setattr(each, events, getattr(each, events) + taken)
        surplus -= taken


def _add_clusters(
    found: dict[tuple[int, datetime], Interval], rollout: Rollout, control: str, until: datetime
) -> None:
    # Histograms come first: a struct that is complete is not changed again.
    latencies: dict[tuple[int, datetime, str, int], Counts] = {}
    for *key, index, count in _rows(CLUSTER_LATENCIES, rollout, control, until):
        latencies.setdefault(tuple(key), {})[index] = count
    for *key, units, assigned, unanswered, n, errors in _rows(
        CLUSTER_COUNTS, rollout, control, until
    ):
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
      AND NOT EXISTS (
          SELECT FROM rollouts_observedinterval AS frozen
          WHERE frozen.rollout_id = %s AND frozen.started_at = interval_started_at
            AND frozen.step_index = width_bucket(generation, %s::bigint[]) - 1
      )
"""
COUNTS = f"""
    SELECT generation, interval_started_at, variant,
           least({SLICES - 1}, greatest(0, floor(
               extract(epoch FROM started_at - interval_started_at) / greatest(
                   {SLICE_S_MIN},
                   (%s::float8[])[greatest(1, width_bucket(generation, %s::bigint[]))] / {SLICES}
               )
           )))::int,
           sum(units + anonymous), sum(unit_errors + anonymous_errors), sum(requests),
           sum(greatest(assigned, units + anonymous)), sum(unanswered)
    {WINDOWS} GROUP BY 1, 2, 3, 4
"""  # noqa: S608 (its numbers are ours)
INSTANCES = f"""
    SELECT generation, interval_started_at, variant, instance,
           sum(units + anonymous), sum(unit_errors + anonymous_errors),
           sum(greatest(assigned, units + anonymous)), sum(unanswered)
    {WINDOWS} GROUP BY 1, 2, 3, 4
"""
CLUSTER_COUNTS = f"""
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


def _rows(
    sql: str,
    rollout: Rollout,
    control: str,
    until: datetime,
    more: Sequence[list[int]] = (),
    *,
    keys: int = 3,
) -> list[tuple]:  # type: ignore[type-arg]
    steps = _steps(rollout)
    which: list[Any] = [
        str(rollout.pk),
        steps[0],
        control,
        until - LOOK_BACK,
        until,
        rollout.pk,
        steps,
    ]
    with connection.cursor() as cursor:
        cursor.execute(sql, [*more, *which])
        return [(*row[:keys], *map(int, row[keys:])) for row in cursor.fetchall()]


def _steps(rollout: Rollout) -> list[int]:
    """The generation that each step began with."""
    return list(rollout.step_generations) or [0]


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
