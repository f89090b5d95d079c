"""Phases of an experiment's weights, and which units moved between them. Pure.

A unit keeps the variant that it met first. When weights change, some buckets belong to another
variant from then on: their units would meet it on return, so that only those who come seldom would
stay in their first one. Such units are left out whether or not they came back, by their bucket,
which says nothing about them.

Data planes take a change in within seconds. Whoever is met meanwhile is left out as well, of all
buckets: else a unit could be in an arm that has no weight any more, and shares would be of neither
phase.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from contract.bucketing import BUCKETS

# Five times as long as a data plane waits between two looks for a new table.
SETTLING = timedelta(seconds=10)


@dataclass(frozen=True)
class WeightPhase:
    """From `at` on; `moved` are the half-open ranges of buckets that belong to another variant in
    any later phase, and `shares` each variant's share of the buckets that stayed. `weights_bp` are
    the variants' weights, in basis points. Units met before `settled_at` are in no arm; None: all
    may be.
    """

    at: datetime
    moved: tuple[tuple[int, int], ...]
    shares: dict[str, float]
    weights_bp: dict[str, int] = field(default_factory=dict)
    settled_at: datetime | None = None


def phases_of(
    variants: Sequence[str], changes: Sequence[tuple[datetime, Mapping[str, int]]]
) -> list[WeightPhase]:
    """Return the phases of `changes` (instant, {variant: basis points}) in their order.

    `variants` are in the order in which the split gives them their buckets.
    """
    owners = [_owners(variants, weights) for _, weights in changes]
    found = []
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
        found.append(WeightPhase(at, _ranges(stays), shares, named, settled_at))
    return found


def _owners(variants: Sequence[str], weights: Mapping[str, int]) -> list[int | None]:
    """Return whose each bucket is, as `contract.routing.ExperimentSplit.variant_of` has it."""
    owners: list[int | None] = []
    for place, name in enumerate(variants):
        owners += [place] * weights.get(name, 0)
    return (owners + [None] * BUCKETS)[:BUCKETS]


def _ranges(stays: Sequence[bool]) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    start: int | None = None
    for bucket, stay in enumerate([*stays, True]):
        if not stay and start is None:
            start = bucket
        elif stay and start is not None:
            found.append((start, bucket))
            start = None
    return tuple(found)
