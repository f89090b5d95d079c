"""Stores each closed interval as it was first judged, so that used evidence never changes.

This makes an evaluation repeatable, and the e-process requires it: a bet is settled once. It also
limits a tick's work to new intervals.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import msgspec

from apps.rollouts.evidence import Arm, Interval, SliceCounts
from apps.rollouts.models import ObservedInterval, Rollout
from contract.messages import ClusterCounts

# The number of parsed intervals that a worker caches for all rollouts; a few kilobytes each.
INTERVALS_KEPT_MAX = 50_000
# Frozen rows never change, so that each evaluation parses only new ones. Only rows that were read
# are cached: rows that a transaction wrote may still be rolled back.
_parsed: OrderedDict[UUID, list[Interval]] = OrderedDict()


def freeze(
    rollout: Rollout, closed: Sequence[Interval], edges: Sequence[int] = ()
) -> list[Interval]:
    """Freeze those of `closed` that are new; return all frozen ones in the order of freezing.

    The caller has locked the rollout's row. Data that is too late for a frozen interval is left
    out. Of the clusters' latency only the counts of answers slower than each of `edges` are kept.
    """
    before = _read(rollout)
    known = {(each.step_index, each.started_at) for each in before}
    fresh = [
        ObservedInterval(
            rollout=rollout,
            ordinal=len(before) + position,
            step_index=interval.step_index,
            started_at=interval.started_at,
            canary=_to_json(interval.canary, edges),
            control=_to_json(interval.control, edges),
        )
        for position, interval in enumerate(
            each for each in closed if (each.step_index, each.started_at) not in known
        )
    ]
    ObservedInterval.objects.bulk_create(fresh)
    return [*before, *map(_interval, fresh)]


def frozen_intervals(rollout: Rollout, count: int | None = None) -> list[Interval]:
    """Return the rollout's frozen intervals, the first `count` of them or all."""
    return _read(rollout)[:count]


def _read(rollout: Rollout) -> list[Interval]:
    """Return the frozen intervals; those in the cache are not parsed again."""
    count = rollout.intervals.count()
    parsed = _parsed.pop(rollout.pk, [])[:count]
    rows = rollout.intervals.filter(ordinal__gte=len(parsed)).order_by("ordinal")
    _parsed[rollout.pk] = parsed = [*parsed, *map(_interval, rows)]
    kept = sum(map(len, _parsed.values()))
    while kept > INTERVALS_KEPT_MAX and len(_parsed) > 1:
        kept -= len(_parsed.popitem(last=False)[1])
    return list(parsed)


def _interval(row: ObservedInterval) -> Interval:
    return Interval(row.step_index, row.started_at, _arm(row.canary), _arm(row.control))


def _arm(document: dict[str, Any]) -> Arm:
    latency = {int(index): count for index, count in document["latency"].items()}
    return Arm(
        document["n"],
        document["errors"],
        document["requests"],
        latency,
        document["assigned"],
        # Older intervals have none of the following.
        document.get("unanswered", 0),
        msgspec.convert(
            document.get("clusters", {}), dict[int, ClusterCounts], strict=False, str_keys=True
        ),
        [SliceCounts(*each) for each in document.get("slices", ())],
        {name: SliceCounts(*each) for name, each in document.get("instances", {}).items()},
    )


def _to_json(arm: Arm, edges: Sequence[int] = ()) -> dict[str, Any]:
    latency = {str(index): count for index, count in arm.latency.items()}
    return {
        "n": arm.n,
        "errors": arm.errors,
        "requests": arm.requests,
        "latency": latency,
        "assigned": arm.assigned,
        "unanswered": arm.unanswered,
        "clusters": msgspec.to_builtins(
            {number: _coarse(each, sorted(edges)) for number, each in arm.clusters.items()},
            str_keys=True,
        ),
        "slices": [each.values for each in arm.slices],
        "instances": {name: each.values for name, each in arm.instances.items()},
    }


def _coarse(counts: ClusterCounts, edges: Sequence[int]) -> ClusterCounts:
    """Reduce a cluster's histogram to the counts up to each edge, and beyond the last."""
    if not edges:
        return counts
    ends = [*edges, edges[-1] + 1]
    latency: dict[int, int] = {}
    for bucket, count in counts.latency.items():
        end = ends[bisect_left(edges, bucket)]
        latency[end] = latency.get(end, 0) + count
    return msgspec.structs.replace(counts, latency=latency)
