"""Computes the weight phases of an experiment, and the buckets that move between them. Pure.

A unit keeps the variant of its first exposure. When weights change, some buckets get another
variant: units in them that return would be exposed to it, so that only rare visitors would remain
in their first variant. These units are excluded by bucket, whether or not they return; the bucket
is independent of the outcome.

Data planes apply a change within seconds. Units exposed during that time are excluded in all
buckets. Else a unit could be in an arm without weight, and the shares would match neither phase.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from contract.bucketing import BUCKETS

# Five times the interval at which a data plane polls for a new routing table.
SETTLING = timedelta(seconds=10)


@dataclass(frozen=True)
class WeightPhase:
    """A phase that starts at `at`.

    `moved` are the half-open ranges of buckets that belong to another variant in a later phase.
    `shares` are each variant's share of the buckets that did not move. `weights_bp` are the weights
    in basis points. Units exposed before `settled_at` are in no arm; None means no such limit.
    """

    at: datetime
    moved: tuple[tuple[int, int], ...]
    shares: dict[str, float]
    weights_bp: dict[str, int] = field(default_factory=dict)
    settled_at: datetime | None = None


def phases_of(
    variants: Sequence[str], changes: Sequence[tuple[datetime, Mapping[str, int]]]
) -> list[WeightPhase]:
    """Return the phases of `changes`, (time, {variant: basis points}), in their order.

    `variants` are in the order in which the split assigns buckets.
    """
    owners = [_owners(variants, weights) for _, weights in changes]
    phases = []
    for place, (at, weights) in enumerate(changes):
        stays = [
            all(later[b] == owners[place][b] for later in owners[place + 1 :])
            for b in range(BUCKETS)
        ]
        kept = [0] * len(variants)
        for b, owner in enumerate(owners[place]):
            if stays[b] and owner is not None:
                kept[owner] += 1
        total = sum(kept) or 1
        shares = {name: kept[i] / total for i, name in enumerate(variants)}
        named = {name: weights.get(name, 0) for name in variants}
        settled_at = at + SETTLING if place else None
        phases.append(WeightPhase(at, _ranges(stays), shares, named, settled_at))
    return phases


def _owners(variants: Sequence[str], weights: Mapping[str, int]) -> list[int | None]:
    """Return the variant index of each bucket, as `contract.routing.ExperimentSplit.variant_of`."""
    owners: list[int | None] = []
    for place, name in enumerate(variants):
        owners += [place] * weights.get(name, 0)
    return (owners + [None] * BUCKETS)[:BUCKETS]


def _ranges(stays: Sequence[bool]) -> tuple[tuple[int, int], ...]:
    ranges: list[tuple[int, int]] = []
    start: int | None = None
    for bucket, stay in enumerate([*stays, True]):
        if not stay and start is None:
            start = bucket
        elif stay and start is not None:
            ranges.append((start, bucket))
            start = None
    return tuple(ranges)
