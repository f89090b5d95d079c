"""Which version answers a request: a pure function of the table, the model and the unit.

Decisions are made once per table and handed out; a request costs one hash. A version with weight
nought gets nothing, and raising a canary's weight moves no unit back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import randrange

from contract.bucketing import BUCKETS, bucket
from contract.routing import (
    BASELINE,
    CANARY,
    EXPLICIT,
    HOLDOUT,
    STABLE,
    CanarySplit,
    ExperimentSplit,
    ModelRoute,
)
from dataplane.errors import Refusal, unavailable

Draw = Callable[[int], int]
# In the place of a bucket: the request has no unit, or is outside of every split.
NO_BUCKET = -1


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """Who answers. `split` is empty outside one; `exposures` says that they are due.

    `dimensions` are the headers whose values exposures carry, `measured` that units are measured.
    """

    version: str
    variant: str
    split: str
    generation: int
    exposures: bool = False
    dimensions: tuple[str, ...] = ()
    measured: bool = False


class Router:
    """Decides for one model under one generation of the table."""

    __slots__ = (
        "_canary_sides",
        "_explicit",
        "_generation",
        "_headers",
        "_model",
        "_name",
        "_split",
        "_stable",
        "_tenants",
        "_variants",
        "targeted",
    )

    def __init__(
        self, name: str, model: ModelRoute, generation: int, *, pinned: bool = False
    ) -> None:
        # The model's name, for messages.
        self._name = name
        # Its part of the table.
        self._model = model
        # The table's generation, which each decision carries.
        self._generation = generation
        # Its split; a model that is pinned to stable is served as if it had none.
        self._split = split = model.split if not pinned else None
        # The decisions for the sides of a canary, by name.
        self._canary_sides = _canary_sides(model.stable, split, generation)
        # What gets everybody else.
        self._stable = self._canary_sides.get(STABLE) or (
            Decision(model.stable, STABLE, "", generation) if model.stable is not None else None
        )
        # The decisions for an experiment's variants, by name.
        self._variants = _variants(model.stable, split, generation)
        # Filled as versions are asked for by name.
        self._explicit: dict[str, Decision] = {}
        # Who is meant by an experiment: tenants, and values of headers.
        self._tenants, self._headers = _targets(split)
        # Whether only some are; then `means` is to be asked before `decide`.
        self.targeted = bool(self._tenants or self._headers)

    @property
    def stable(self) -> Decision | None:
        """The decision that gets what no split claims, and what falls back."""
        return self._stable

    def means(self, tenant: str, headers: dict[bytes, bytes]) -> bool:
        """Say whether a request takes part in a split that is targeted."""
        if self._tenants and tenant not in self._tenants:
            return False
        return all(headers.get(name) in values for name, values in self._headers)

    @property
    def outside(self) -> Decision:
        """The decision for those whom a targeted split does not mean: stable, as without it."""
        assert self._stable is not None
        return self._stable

    def decide(self, unit: str | None, draw: Draw = randrange) -> Decision:
        """Return who answers `unit`. Raises Refusal (503)."""
        return self.place(unit, draw)[0]

    def place(self, unit: str | None, draw: Draw = randrange) -> tuple[Decision, int]:
        """Return who answers `unit`, and the bucket that it is in; NO_BUCKET without one.

        Without a unit `draw(10000)` stands in for each bucket. Raises Refusal (503) for a model
        without a stable version.
        """
        stable = self._stable
        if stable is None:
            raise unavailable("no_stable_version", f"model {self._name!r} has no stable version", 5)
        split = self._split
        if split is None:
            return stable, NO_BUCKET
        if isinstance(split, CanarySplit):
            if unit is None:
                return self._canary_sides[split.variant_at(draw(BUCKETS))], NO_BUCKET
            point = bucket(split.salt, unit)
            return self._canary_sides[split.variant_at(point)], point
        if unit is not None:
            if split.holdout_bp and split.is_held_out(unit):
                return self._variants[HOLDOUT], bucket(split.variant_salt, unit)
            if bucket(split.inclusion_salt, unit) >= split.coverage_bp:
                return stable, NO_BUCKET
            point = bucket(split.variant_salt, unit)
            return self._variant_at(split, point), point
        if split.holdout_bp and draw(BUCKETS) < split.holdout_bp:
            return self._variants[HOLDOUT], NO_BUCKET
        if draw(BUCKETS) >= split.coverage_bp:
            return stable, NO_BUCKET
        return self._variant_at(split, draw(BUCKETS)), NO_BUCKET

    def explicit(self, version: str) -> Decision:
        """Return the decision for a request that names its version, past any split.

        Raises Refusal (404) for a version that is not served.
        """
        decision = self._explicit.get(version)
        if decision is None:
            if version not in self._model.versions:
                raise Refusal(
                    404, "version_not_found", f"model {self._name!r} has no version {version!r}"
                )
            decision = Decision(version, EXPLICIT, "", self._generation)
            self._explicit[version] = decision
        return decision

    def _variant_at(self, split: ExperimentSplit, point: int) -> Decision:
        for variant in split.variants:
            point -= variant.weight_bp
            if point < 0:
                return self._variants[variant.name]
        raise AssertionError("variant weights of a checked table sum to all buckets")


def _canary_sides(
    stable: str | None, split: CanarySplit | ExperimentSplit | None, generation: int
) -> dict[str, Decision]:
    """All sides of a canary carry its id, so that they are compared with each other."""
    if stable is None or not isinstance(split, CanarySplit):
        return {}
    versions = {CANARY: split.version, STABLE: stable, BASELINE: stable}
    return {
        side: Decision(version, side, split.id, generation, split.exposures)
        for side, version in versions.items()
    }


def _variants(
    stable: str | None, split: CanarySplit | ExperimentSplit | None, generation: int
) -> dict[str, Decision]:
    if stable is None or not isinstance(split, ExperimentSplit):
        return {}
    versions = {variant.name: variant.version for variant in split.variants} | {HOLDOUT: stable}
    return {
        name: Decision(version, name, split.id, generation, True, split.dimensions, split.measured)
        for name, version in versions.items()
    }


def _targets(
    split: CanarySplit | ExperimentSplit | None,
) -> tuple[frozenset[str], tuple[tuple[bytes, frozenset[bytes]], ...]]:
    """Return the tenants and the headers, as they come, that an experiment is about."""
    if not isinstance(split, ExperimentSplit):
        return frozenset(), ()
    headers = tuple(
        (name.lower().encode(), frozenset(value.encode() for value in values))
        for name, values in sorted(split.headers.items())
    )
    return frozenset(split.tenants), headers
