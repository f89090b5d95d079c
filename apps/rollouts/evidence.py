"""Adds up telemetry windows of canary and stable to intervals over the same seconds.

An interval is one check interval inside one step. A window belongs to a step by its generation, so
that traffic of an instance that was late with a table is not counted for the next step. Intervals
are never pooled over steps. Only closed ones are judged, and they are frozen when first read
(`apps.rollouts.interval_store`): evidence never changes once it was used.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from django.db import connection
from django.db.models import Max
from numpy.typing import NDArray

from apps.rollouts.fleet_status import live_instances
from apps.rollouts.models import Rollout, TelemetryRow
from apps.rollouts.segments import SLICE_S_MIN, SLICES
from contract.histogram import Counts
from contract.messages import CLUSTERS, ClusterCounts
from contract.routing import CANARY, STABLE

# How long after its end an interval may still get windows: the length of one plus its delivery.
GRACE = timedelta(seconds=3)
# The columns of an arm's tables.
COLUMNS = ("n", "errors", "assigned", "unanswered", "units")
# The longest wait for windows of an instance that reported recently.
LATE = timedelta(seconds=20)
# Windows that arrive later than this after their interval are shown but not judged.
LOOK_BACK = timedelta(hours=1)
# Most evaluations read only the last RECENT_INTERVALS before the newest frozen one; one in
# EVALUATIONS_PER_FULL_READ reads all intervals of LOOK_BACK.
RECENT_INTERVALS = 6
EVALUATIONS_PER_FULL_READ = 30


@dataclass
class Arm:
    """One side of an interval. `n` counts units (and requests without one), `errors` of those.

    `assigned` are those that the split sent there, including those answered from a cache.
    `unanswered` are the assigned ones with a request that the version left without an answer.
    `clusters` are the same counts by cluster of units, `slices` by time, SLICES of equal length,
    and `instances` by data plane instance. They are empty where they were not kept.
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
        """The clusters as arrays; cached, so read it only once the counts are complete."""
        return Grouped.of(self.clusters)

    @cached_property
    def table(self) -> NDArray[np.float64]:
        """The slices as rows of COLUMNS, without units; cached like `grouped`.

        Where slices were not kept, the first row has the whole interval.
        """
        rows = np.zeros((SLICES, len(COLUMNS) - 1))
        if self.slices:
            rows[:] = [(s.n, s.errors, s.assigned, s.unanswered) for s in self.slices]
        else:
            rows[0] = self.n, self.errors, self.assigned, self.unanswered
        return rows

    @cached_property
    def histogram(self) -> NDArray[np.int64]:
        """The latency's buckets and their counts, `(2, buckets)`; cached like `grouped`."""
        return np.array(list(self.latency.items()), dtype=np.int64).reshape(-1, 2).T


@dataclass(frozen=True)
class Grouped:
    """Clusters as arrays: a row of COLUMNS each of `counts`.

    `cells` has a column for each bucket of each cluster's latency: the cluster, bucket, count.
    """

    counts: NDArray[np.float64]
    cells: NDArray[np.int64]

    @classmethod
    def of(cls, clusters: Mapping[int, ClusterCounts]) -> Grouped:
        counts = np.zeros((CLUSTERS, len(COLUMNS)))
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
    """The counts of one slice of an interval, or of one instance in it; see Arm."""

    n: int = 0
    errors: int = 0
    assigned: int = 0
    unanswered: int = 0

    @property
    def values(self) -> tuple[int, int, int, int]:
        """The counts in the order of the fields."""
        return self.n, self.errors, self.assigned, self.unanswered

    def add(self, counts: Sequence[int]) -> None:
        """Add counts in the order of the fields."""
        n, errors, assigned, unanswered = counts
        self.n += n
        self.errors += errors
        self.assigned += assigned
        self.unanswered += unanswered


@dataclass
class Interval:
    step_index: int
    started_at: datetime
    canary: Arm = field(default_factory=Arm)
    control: Arm = field(default_factory=Arm)


# By step and start.
IntervalsByKey = dict[tuple[int, datetime], Interval]


@dataclass(frozen=True)
class WindowRange:
    """The windows to read: those of intervals that began after `since` and until `until`.

    `steps` are the first generations of the steps.
    """

    rollout: Rollout
    control: str
    since: datetime
    until: datetime
    steps: list[int]

    @property
    def parameters(self) -> list[Any]:
        """The parameters of WINDOWS, in order."""
        return [
            self.rollout.model.name,
            self.since,
            str(self.rollout.pk),
            self.steps[0],
            self.control,
            self.since,
            self.until,
            self.rollout.pk,
            self.steps,
        ]


def closed_intervals(
    rollout: Rollout,
    interval_s: int,
    now: datetime,
    *,
    control: str = STABLE,
    lengths_s: Sequence[int] = (),
) -> list[Interval]:
    """Return the recent intervals that get no more windows and are not frozen, oldest first.

    `control` is the variant that the canary is compared with. Intervals last `interval_s` at most,
    and `lengths_s` by step where these differ. An interval waits up to LATE for a live instance
    that reported in it or in the one before, and not since: its windows are still on the way.
    """
    length = timedelta(seconds=interval_s)
    until = now - length - GRACE
    steps = list(rollout.step_generations) or [0]
    window_range = WindowRange(rollout, control, _since(rollout, until, length), until, steps)
    intervals = _read(window_range, list(lengths_s) or [interval_s])
    open_at = _open_since(intervals, window_range, length, now)
    return [intervals[key] for key in sorted(intervals) if open_at is None or key[1] < open_at]


def _since(rollout: Rollout, until: datetime, length: timedelta) -> datetime:
    """Return the time from which windows are read; most new windows are recent.

    Reading the whole hour costs as much as all of its windows, so that very late ones are read
    once in EVALUATIONS_PER_FULL_READ intervals.
    """
    whole = until - LOOK_BACK
    newest = rollout.intervals.order_by("-ordinal").values_list("started_at", flat=True).first()
    if (
        newest is None
        or int(until.timestamp() / length.total_seconds()) % EVALUATIONS_PER_FULL_READ == 0
    ):
        return whole
    return max(whole, min(newest, until) - RECENT_INTERVALS * length)


def _open_since(
    intervals: IntervalsByKey, window_range: WindowRange, length: timedelta, now: datetime
) -> datetime | None:
    """Return the start of the first interval that an instance may still send windows for."""
    fresh = [at for _, at in intervals if now < at + length + GRACE + LATE]
    if not fresh:
        return None
    recent = TelemetryRow.objects.filter(
        model_name=window_range.rollout.model.name,
        ended_at__gt=min(fresh) - length,
        instance__in=live_instances(now).values("name"),
    )
    ends = recent.values("instance").annotate(last=Max("ended_at")).values_list("last", flat=True)
    still_open = [at for at in fresh if any(at - length <= last < at + length for last in ends)]
    return min(still_open, default=None)


def _read(window_range: WindowRange, lengths_s: Sequence[int]) -> IntervalsByKey:
    """Add up the windows in range of the intervals that are not frozen."""
    intervals: IntervalsByKey = {}
    lengths = list(lengths_s[: len(window_range.steps)])
    lengths += lengths[-1:] * (len(window_range.steps) - len(lengths))
    for generation, started_at, variant, instance, at, requests, *counts in _rows(
        COUNTS, window_range, [lengths, window_range.steps], keys=4
    ):
        arm = _arm(intervals, window_range, generation, started_at, variant)
        n, errors, assigned, unanswered = counts
        arm.n += n
        arm.errors += errors
        arm.requests += requests
        arm.assigned += assigned
        arm.unanswered += unanswered
        arm.slices = arm.slices or [SliceCounts() for _ in range(SLICES)]
        arm.slices[at].add(counts)
        arm.instances.setdefault(instance, SliceCounts()).add(counts)
    for generation, started_at, variant, index, count in _rows(LATENCIES, window_range):
        arm = _arm(intervals, window_range, generation, started_at, variant)
        arm.latency[index] = arm.latency.get(index, 0) + count
    _add_clusters(intervals, window_range)
    for interval in intervals.values():
        for arm in (interval.canary, interval.control):
            _assume_assigned(arm)
            _count_late_ends(arm)
            _settle(arm.slices)
    return intervals


def _assume_assigned(arm: Arm) -> None:
    """Take answered units as assigned where these were not counted, as by older data planes.

    Not by window: a request that is assigned in one and answered in the next is one request.
    """
    if not arm.assigned:
        arm.assigned = arm.n
        for each in (*arm.slices, *arm.instances.values()):
            each.assigned = each.n


def _count_late_ends(arm: Arm) -> None:
    """Count units assigned in an earlier interval and left without an answer in this one.

    With few requests, a version that hangs may leave more units unanswered in an interval than it
    was assigned in it: limiting them to the assigned ones would lose the evidence that it hangs.
    """
    late = arm.unanswered - arm.assigned
    if late > 0:
        arm.assigned += late
        if arm.slices:
            arm.slices[0].assigned += late


def _settle(slices: list[SliceCounts]) -> None:
    """Move events so that no slice has more of them than exposures.

    A unit counts once in an interval, in the slice of its first request, and may fail in a later
    slice: surplus events go to the slices with the most exposures left.
    """
    for events, exposures in (("errors", "n"), ("unanswered", "assigned")):
        for each in slices:
            surplus = getattr(each, events) - getattr(each, exposures)
            if surplus > 0:
                setattr(each, events, getattr(each, exposures))
                _distribute(slices, surplus, events, exposures)


def _distribute(slices: list[SliceCounts], surplus: int, events: str, exposures: str) -> None:
    def room(each: SliceCounts) -> int:
        return int(getattr(each, exposures) - getattr(each, events))

    for each in sorted(slices, key=room, reverse=True):
        taken = min(surplus, max(0, room(each)))
        setattr(each, events, getattr(each, events) + taken)
        surplus -= taken


def _add_clusters(intervals: IntervalsByKey, window_range: WindowRange) -> None:
    # Histograms come first: a struct must be complete when it is created.
    latencies: dict[tuple[int, datetime, str, int], Counts] = {}
    for *key, index, count in _rows(CLUSTER_LATENCIES, window_range):
        latencies.setdefault(tuple(key), {})[index] = count
    for *key, units, assigned, unanswered, n, errors in _rows(CLUSTER_COUNTS, window_range):
        generation, started_at, variant, cluster = key
        arm = _arm(intervals, window_range, generation, started_at, variant)
        latency = latencies.get((generation, started_at, variant, cluster), {})
        more = ClusterCounts(units, assigned, unanswered, n, errors, latency)
        before = arm.clusters.get(cluster)
        arm.clusters[cluster] = more if before is None else before.merge(more)


def _arm(
    intervals: IntervalsByKey,
    window_range: WindowRange,
    generation: int,
    started_at: datetime,
    variant: str,
) -> Arm:
    step_index = bisect_right(window_range.rollout.step_generations, generation) - 1
    key = (step_index, started_at)
    interval = intervals.setdefault(key, Interval(step_index, started_at))
    return interval.canary if variant == CANARY else interval.control


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# As a number: a timestamp takes longer to read than the rest of the row, for thousands of rows.
STARTED_US = "(extract(epoch FROM interval_started_at) * 1000000)::bigint"
WINDOWS = """
    FROM rollouts_telemetryrow
    WHERE model_name = %s AND ended_at > %s
      AND split = %s AND generation >= %s AND variant IN ('canary', %s)
      AND interval_started_at > %s AND interval_started_at <= %s
      AND NOT EXISTS (
          SELECT FROM rollouts_observedinterval AS frozen
          WHERE frozen.rollout_id = %s AND frozen.started_at = interval_started_at
            AND frozen.step_index = width_bucket(generation, %s::bigint[]) - 1
      )
"""
COUNTS = f"""
    SELECT generation, {STARTED_US}, variant, instance,
           least({SLICES - 1}, greatest(0, floor(
               extract(epoch FROM started_at - interval_started_at) / greatest(
                   {SLICE_S_MIN},
                   (%s::float8[])[greatest(1, width_bucket(generation, %s::bigint[]))] / {SLICES}
               )
           )))::int,
           sum(requests), sum(units + anonymous), sum(unit_errors + anonymous_errors),
           sum(assigned), sum(unanswered)
    {WINDOWS} GROUP BY 1, 2, 3, 4, 5
"""  # noqa: S608 (its numbers are ours)
CLUSTER_COUNTS = f"""
    SELECT generation, {STARTED_US}, variant, cluster.key::int,
           sum((cluster.value->>0)::int), sum((cluster.value->>1)::int),
           sum((cluster.value->>2)::int), sum((cluster.value->>3)::int),
           sum((cluster.value->>4)::int)
    {WINDOWS.replace("WHERE", ", jsonb_each(clusters) AS cluster WHERE", 1)} GROUP BY 1, 2, 3, 4
"""
CLUSTER_LATENCIES = f"""
    SELECT generation, {STARTED_US}, variant, cluster.key::int, bucket.key::int,
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
    SELECT generation, {STARTED_US}, variant, bucket.key::int, sum(bucket.value::int)
    {WINDOWS.replace("WHERE", ", jsonb_each_text(latency) AS bucket WHERE", 1)} GROUP BY 1, 2, 3, 4
"""


def _rows(
    sql: str, window_range: WindowRange, more: Sequence[list[int]] = (), *, keys: int = 3
) -> list[tuple]:  # type: ignore[type-arg]
    with connection.cursor() as cursor:
        cursor.execute(sql, [*more, *window_range.parameters])
        return [
            (row[0], _timestamp(row[1]), *row[2:keys], *map(int, row[keys:]))
            for row in cursor.fetchall()
        ]


@lru_cache(maxsize=4_096)
def _timestamp(since_1970_us: int) -> datetime:
    return EPOCH + timedelta(microseconds=since_1970_us)


@dataclass(frozen=True)
class LatencyReference:
    """Stable's usual latency as histogram buckets, frozen before the data that it applies to.

    `p50`, `p95` and `p99` are the buckets of those quantiles with the plan's slack added. `p50` is
    None in older rollouts.
    """

    p95: int
    p99: int
    n: int
    frozen_at: datetime
    p50: int | None = None
    # The time of the first answer; None in older rollouts.
    since: datetime | None = None
