"""Little traffic: intervals in which one version answered nobody, and how old data may be.

The e-process compares canary and stable within an interval and skips one that saw only one of them:
at three requests an hour that would be every interval. So neighbours are pooled until both were
seen. Which are pooled depends on exposures alone, never on errors, and a pool that is complete is
not changed again: each bet is still fixed before its interval and settled once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple
from datetime import datetime, timedelta

from apps.rollouts.evidence import Arm, Interval, SliceCounts
from contract import histogram
from contract.messages import ClusterCounts

# A pass needs data of this step that is no older than so many check intervals, or where these are
# short for the traffic, than the time in which so many exposures of either version are due: all of
# them stay away by chance once in a thousand times (e^-7).
FRESH_INTERVALS = 5
FRESH_EXPOSURES = 7


def pool_sparse(intervals: Sequence[Interval]) -> list[Interval]:
    """Return the intervals in their order, neighbours of one step pooled until both arms were seen.

    A pool begins when its first interval began and stands where its last one stood; what is not
    complete yet is left as it is. An interval in which the share changed stands alone, since not
    all of it belongs to one step.
    """
    if all(_completes(each, each) for each in intervals):
        return list(intervals)
    found: dict[int, Interval] = {}
    open_pools: dict[int, list[int]] = {}
    steps_at = Counter(interval.started_at for interval in intervals)
    for place, interval in enumerate(intervals):
        found[place] = interval
        pool = open_pools.setdefault(interval.step_index, [])
        if steps_at[interval.started_at] > 1:
            pool.clear()
            continue
        first = intervals[pool[0]] if pool else interval
        pool.append(place)
        if not _completes(first, interval):
            # All of an open pool saw one arm only, the same: the first of them says which.
            if not (_ended(first.canary) or _ended(first.control)):
                pool[:] = [place]
            continue
        if len(pool) > 1:
            for each in pool:
                del found[each]
            found[place] = _pooled([intervals[each] for each in pool])
        pool.clear()
    return list(found.values())


def _completes(first: Interval, last: Interval) -> bool:
    canary = _ended(first.canary) + _ended(last.canary)
    control = _ended(first.control) + _ended(last.control)
    return canary > 0 and control > 0


def _ended(arm: Arm) -> int:
    """Who was answered or failed, or was left without an answer: of a version that hangs all."""
    return arm.n + arm.unanswered


def _pooled(parts: Sequence[Interval]) -> Interval:
    return Interval(
        parts[0].step_index,
        parts[0].started_at,
        _sum([part.canary for part in parts]),
        _sum([part.control for part in parts]),
    )


def _sum(arms: Sequence[Arm]) -> Arm:
    """Add up; slices are not kept, as too few of them saw both arms, and the pool is one slice."""
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
    found: dict[int, ClusterCounts] = {}
    for part in parts:
        for number, counts in part.items():
            before = found.get(number)
            found[number] = counts if before is None else before.merge(counts)
    return found


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
    """Say whether the step saw the canary, and stable where it must, as lately as is usual.

    `intervals` are those that were frozen, not pooled.
    """
    mine = [i for i in intervals if i.step_index == step_index]
    least = timedelta(seconds=FRESH_INTERVALS * interval_s)
    canary = [(i.started_at, i.canary.n) for i in mine]
    control = [(i.started_at, i.control.n) for i in mine]
    return _is_recent(canary, least, now) and (not needs_control or _is_recent(control, least, now))


def _is_recent(counts: Sequence[tuple[datetime, int]], least: timedelta, now: datetime) -> bool:
    seen = [at for at, n in counts if n]
    if not seen:
        return False
    due = (now - counts[0][0]) * FRESH_EXPOSURES / sum(n for _, n in counts)
    return seen[-1] >= now - max(least, due)
