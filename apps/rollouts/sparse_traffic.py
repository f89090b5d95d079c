"""Handles low traffic: pools intervals without data of one version, and limits the age of data.

The e-process compares canary and stable within an interval and skips intervals with data of only
one: at three requests per hour that would be every interval. So neighbours are pooled until both
versions have data. Pooling depends on exposures alone, never on errors, and a complete pool stays
unchanged: each bet is still fixed before its interval and settled once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple
from datetime import datetime, timedelta

from apps.rollouts.evidence import Arm, Interval, SliceCounts
from contract import histogram
from contract.messages import ClusterCounts

# A pass needs data of this step no older than FRESH_INTERVALS check intervals, or at low traffic no
# older than the time in which FRESH_EXPOSURES of either version are expected: the probability that
# none of them arrives by chance is one in a thousand (e^-7).
FRESH_INTERVALS = 5
FRESH_EXPOSURES = 7


def pool_sparse(intervals: Sequence[Interval]) -> list[Interval]:
    """Return the intervals in order, with neighbours of one step pooled until both arms have data.

    A pool has the start of its first interval and the position of its last one; incomplete pools
    stay separate intervals. An interval in which the share changed is not pooled, since only a part
    of it belongs to each step.
    """
    if all(_completes(each, each) for each in intervals):
        return list(intervals)
    by_place: dict[int, Interval] = {}
    open_pools: dict[int, list[int]] = {}
    steps_at = Counter(interval.started_at for interval in intervals)
    for place, interval in enumerate(intervals):
        by_place[place] = interval
        pool = open_pools.setdefault(interval.step_index, [])
        if steps_at[interval.started_at] > 1:
            pool.clear()
            continue
        first = intervals[pool[0]] if pool else interval
        pool.append(place)
        if not _completes(first, interval):
            # All intervals of an open pool have data of the same arm: the first one shows which.
            if not (_ended(first.canary) or _ended(first.control)):
                pool[:] = [place]
            continue
        if len(pool) > 1:
            for each in pool:
                del by_place[each]
            by_place[place] = _pooled([intervals[each] for each in pool])
        pool.clear()
    return list(by_place.values())


def _completes(first: Interval, last: Interval) -> bool:
    canary = _ended(first.canary) + _ended(last.canary)
    control = _ended(first.control) + _ended(last.control)
    return canary > 0 and control > 0


def _ended(arm: Arm) -> int:
    """Count units with an answer, an error or none; of a version that hangs, all have none."""
    return arm.n + arm.unanswered


def _pooled(parts: Sequence[Interval]) -> Interval:
    return Interval(
        parts[0].step_index,
        parts[0].started_at,
        _sum([part.canary for part in parts]),
        _sum([part.control for part in parts]),
    )


def _sum(arms: Sequence[Arm]) -> Arm:
    """Add up arms without slices, too few of which have both arms: the pool is one slice."""
    return Arm(
        n=sum(arm.n for arm in arms),
        errors=sum(arm.errors for arm in arms),
        requests=sum(arm.requests for arm in arms),
        latency=histogram.merge(arm.latency for arm in arms),
        assigned=sum(arm.assigned for arm in arms),
        unanswered=sum(arm.unanswered for arm in arms),
        clusters=_sum_clusters([arm.clusters for arm in arms]),
        instances=_sum_instances([arm.instances for arm in arms]),
    )


def _sum_clusters(parts: Sequence[dict[int, ClusterCounts]]) -> dict[int, ClusterCounts]:
    pooled: dict[int, ClusterCounts] = {}
    for part in parts:
        for number, counts in part.items():
            before = pooled.get(number)
            pooled[number] = counts if before is None else before.merge(counts)
    return pooled


def _sum_instances(parts: Sequence[dict[str, SliceCounts]]) -> dict[str, SliceCounts]:
    pooled: dict[str, SliceCounts] = {}
    for part in parts:
        for name, counts in part.items():
            before = pooled.get(name, SliceCounts())
            pooled[name] = SliceCounts(
                *(a + b for a, b in zip(astuple(before), astuple(counts), strict=True))
            )
    return pooled


def is_fresh(
    intervals: Sequence[Interval],
    step_index: int,
    *,
    needs_control: bool,
    interval_s: int,
    now: datetime,
) -> bool:
    """Return whether the step has recent data of the canary, and of stable if it needs a control.

    `intervals` are the frozen ones, not pooled.
    """
    own = [i for i in intervals if i.step_index == step_index]
    least = timedelta(seconds=FRESH_INTERVALS * interval_s)
    canary = [(i.started_at, i.canary.n) for i in own]
    control = [(i.started_at, i.control.n) for i in own]
    return _is_recent(canary, least, now) and (not needs_control or _is_recent(control, least, now))


def _is_recent(counts: Sequence[tuple[datetime, int]], least: timedelta, now: datetime) -> bool:
    times = [at for at, n in counts if n]
    if not times:
        return False
    due = (now - counts[0][0]) * FRESH_EXPOSURES / sum(n for _, n in counts)
    return times[-1] >= now - max(least, due)
