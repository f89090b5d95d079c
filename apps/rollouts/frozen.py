"""Keeps each closed interval as it was first judged, so that evidence once seen never changes.

That is what makes an evaluation repeatable, and it is what the e-process needs: a bet is settled
once. It also keeps a tick's work to what is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import msgspec

from apps.rollouts.evidence import Arm, Interval, SliceCounts
from apps.rollouts.models import ObservedInterval, Rollout
from contract.messages import ClusterCounts


def freeze(rollout: Rollout, closed: Sequence[Interval]) -> list[Interval]:
    """Freeze those of `closed` that are new; return all frozen ones in the order of freezing.

    The caller holds the rollout's row. What came too late for a frozen interval is left out.
    """
    rows = list(rollout.intervals.order_by("ordinal"))
    known = {(row.step_index, row.started_at) for row in rows}
    fresh = [
        ObservedInterval(
            rollout=rollout,
            ordinal=len(rows) + position,
            step_index=interval.step_index,
            started_at=interval.started_at,
            canary=_to_json(interval.canary),
            control=_to_json(interval.control),
        )
        for position, interval in enumerate(
            each for each in closed if (each.step_index, each.started_at) not in known
        )
    ]
    ObservedInterval.objects.bulk_create(fresh)
    return [_interval(row) for row in (*rows, *fresh)]


def frozen_intervals(rollout: Rollout, count: int | None = None) -> list[Interval]:
    """Return the rollout's frozen intervals, the first `count` of them or all."""
    rows = rollout.intervals.order_by("ordinal")
    if count is not None:
        rows = rows.filter(ordinal__lt=count)
    return [_interval(row) for row in rows]


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
        # Intervals that were frozen before these were counted have none.
        document.get("unanswered", 0),
        msgspec.convert(
            document.get("clusters", {}), dict[int, ClusterCounts], strict=False, str_keys=True
        ),
        [SliceCounts(*each) for each in document.get("slices", ())],
    )


def _to_json(arm: Arm) -> dict[str, Any]:
    latency = {str(index): count for index, count in arm.latency.items()}
    return {
        "n": arm.n,
        "errors": arm.errors,
        "requests": arm.requests,
        "latency": latency,
        "assigned": arm.assigned,
        "unanswered": arm.unanswered,
        "clusters": msgspec.to_builtins(arm.clusters, str_keys=True),
        "slices": [astuple(each) for each in arm.slices],
    }
