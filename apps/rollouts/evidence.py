"""What was seen of canary and stable over the same seconds: telemetry windows become intervals.

An interval is one check interval inside one step. A window belongs to a step by its generation, so
that traffic of an instance that was late with a table is not counted for the next step. Intervals
are never pooled over steps. Only closed ones are judged, and they are frozen when first seen closed
(`apps.rollouts.interval_store`): evidence that was looked at never changes.
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

# How long after its end an interval may still get windows: their length, and the way here.
GRACE = timedelta(seconds=3)
# The columns of an arm's tables.
COLUMNS = ("n", "errors", "assigned", "unanswered", "units")
# Windows of an instance that is heard of late are waited for, so long at most.
LATE = timedelta(seconds=20)
# Windows that come later than so long after their interval are shown and no longer judged.
LOOK_BACK = timedelta(hours=1)
# Most looks read what the last intervals before the newest frozen one brought, one in so many all.
RECENT_INTERVALS = 6
LOOKS_A_WHOLE = 30


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
    def table(self) -> NDArray[np.float64]:
        """The slices as rows of COLUMNS, without units; ask as for `grouped`.

        Where they were not kept the first row has the whole interval.
        """
        rows = np.zeros((SLICES, len(COLUMNS) - 1))
        if self.slices:
            rows[:] = [(s.n, s.errors, s.assigned, s.unanswered) for s in self.slices]
        else:
            rows[0] = self.n, self.errors, self.assigned, self.unanswered
        return rows

    @cached_property
    def histogram(self) -> NDArray[np.int64]:
        """The latency's buckets and their counts, `(2, buckets)`; ask as for `grouped`."""
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
    """What one slice of an interval, or one instance in it, counted; see Arm."""

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


# By step and when they began.
Found = dict[tuple[int, datetime], Interval]


@dataclass(frozen=True)
class Reach:
    """Whose windows are read, and of which intervals: those that began after `since`, by `until`.

    `steps` are the generations that the steps began with.
    """

    rollout: Rollout
    control: str
    since: datetime
    until: datetime
    steps: list[int]

    @property
    def window(self) -> list[Any]:
        """What WINDOWS asks for, in its order."""
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
    """Return the intervals of late that get no more windows and are not frozen, oldest first.

    `control` is the variant that the canary is compared with. Intervals last `interval_s` at most,
    and `lengths_s` by step where these differ. A live instance that was heard of in an interval or
    the one before, and not since, is waited for a while: its windows are on their way.
    """
    length = timedelta(seconds=interval_s)
    until = now - length - GRACE
    steps = list(rollout.step_generations) or [0]
    reach = Reach(rollout, control, _since(rollout, until, length), until, steps)
    found = _read(reach, list(lengths_s) or [interval_s])
    held_at = _held_at(found, reach, length, now)
    return [found[key] for key in sorted(found) if held_at is None or key[1] < held_at]


def _since(rollout: Rollout, until: datetime, length: timedelta) -> datetime:
    """Return from where on windows are read: what most looks find new is of late.

    Each look at the whole hour costs as much as all of its windows, so that those which come very
    late are looked for once in LOOKS_A_WHOLE intervals.
    """
    whole = until - LOOK_BACK
    newest = rollout.intervals.order_by("-ordinal").values_list("started_at", flat=True).first()
    if newest is None or int(until.timestamp() / length.total_seconds()) % LOOKS_A_WHOLE == 0:
        return whole
    return max(whole, min(newest, until) - RECENT_INTERVALS * length)


def _held_at(found: Found, reach: Reach, length: timedelta, now: datetime) -> datetime | None:
    """Return where the first interval begins that an instance may still tell more of."""
    fresh = [at for _, at in found if now < at + length + GRACE + LATE]
    if not fresh:
        return None
    lately = TelemetryRow.objects.filter(
        model_name=reach.rollout.model.name,
        ended_at__gt=min(fresh) - length,
        instance__in=live_instances(now).values("name"),
    )
    heard = lately.values("instance").annotate(last=Max("ended_at")).values_list("last", flat=True)
    held = [at for at in fresh if any(at - length <= last < at + length for last in heard)]
    return min(held, default=None)


def _read(reach: Reach, lengths_s: Sequence[int]) -> Found:
    """Add up the windows in reach of what is not frozen."""
    found: Found = {}
    lengths = list(lengths_s[: len(reach.steps)])
    lengths += lengths[-1:] * (len(reach.steps) - len(lengths))
    for generation, started_at, variant, instance, at, requests, *counts in _rows(
        COUNTS, reach, [lengths, reach.steps], keys=4
    ):
        arm = _arm(found, reach, generation, started_at, variant)
        n, errors, assigned, unanswered = counts
        arm.n += n
        arm.errors += errors
        arm.requests += requests
        arm.assigned += assigned
        arm.unanswered += unanswered
        arm.slices = arm.slices or [SliceCounts() for _ in range(SLICES)]
        arm.slices[at].add(counts)
        arm.instances.setdefault(instance, SliceCounts()).add(counts)
    for generation, started_at, variant, index, count in _rows(LATENCIES, reach):
        arm = _arm(found, reach, generation, started_at, variant)
        arm.latency[index] = arm.latency.get(index, 0) + count
    _add_clusters(found, reach)
    for interval in found.values():
        for arm in (interval.canary, interval.control):
            _suppose_assigned(arm)
            _count_late_ends(arm)
            _settle(arm.slices)
    return found


def _suppose_assigned(arm: Arm) -> None:
    """Take who was answered for assigned where nobody counted that: data planes once did not.

    Not by window: a request that is assigned in one and answered in the next is one request.
    """
    if not arm.assigned:
        arm.assigned = arm.n
        for each in (*arm.slices, *arm.instances.values()):
            each.assigned = each.n


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


def _add_clusters(found: Found, reach: Reach) -> None:
    # Histograms come first: a struct that is complete is not changed again.
    latencies: dict[tuple[int, datetime, str, int], Counts] = {}
    for *key, index, count in _rows(CLUSTER_LATENCIES, reach):
        latencies.setdefault(tuple(key), {})[index] = count
    for *key, units, assigned, unanswered, n, errors in _rows(CLUSTER_COUNTS, reach):
        generation, started_at, variant, cluster = key
        arm = _arm(found, reach, generation, started_at, variant)
        latency = latencies.get((generation, started_at, variant, cluster), {})
        more = ClusterCounts(units, assigned, unanswered, n, errors, latency)
        before = arm.clusters.get(cluster)
        arm.clusters[cluster] = more if before is None else before.merge(more)


def _arm(found: Found, reach: Reach, generation: int, started_at: datetime, variant: str) -> Arm:
    step_index = bisect_right(reach.rollout.step_generations, generation) - 1
    key = (step_index, started_at)
    interval = found.setdefault(key, Interval(step_index, started_at))
    return interval.canary if variant == CANARY else interval.control


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# As a number: a timestamp of each of thousands of rows takes longer to read than all else of it.
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


def _rows(sql: str, reach: Reach, more: Sequence[list[int]] = (), *, keys: int = 3) -> list[tuple]:  # type: ignore[type-arg]
    with connection.cursor() as cursor:
        cursor.execute(sql, [*more, *reach.window])
        return [
            (row[0], _instant(row[1]), *row[2:keys], *map(int, row[keys:]))
            for row in cursor.fetchall()
        ]


@lru_cache(maxsize=4_096)
def _instant(since_1970_us: int) -> datetime:
    return EPOCH + timedelta(microseconds=since_1970_us)


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
