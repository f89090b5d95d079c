"""Routes a request to a version: a pure function of the table, the model and the unit.

Decisions are created once per table and reused; a request costs one hash. A version with weight 0
gets nothing, and raising a canary's weight moves no unit back.
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
# In place of a bucket: the request has no unit, or is outside every split.
NO_BUCKET = -1


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """The chosen version and variant. `split` is empty outside a split.

    `exposures` says that exposures are reported, `dimensions` are the headers whose values they
    carry, and `measured` says that units are measured.
    """

    version: str
    variant: str
    split: str
    generation: int
    exposures: bool = False
    dimensions: tuple[str, ...] = ()
    measured: bool = False


class Router:
    """Routes the requests of one model under one generation of the table."""

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
        # The model's part of the table.
        self._model = model
        # The table's generation, which each decision carries.
        self._generation = generation
        # The split; a model that is pinned to stable is served as if it had none.
        self._split = split = model.split if not pinned else None
        # The decisions of a canary's variants, by name.
        self._canary_sides = _canary_sides(model.stable, split, generation)
        # The decision for all other requests.
        self._stable = self._canary_sides.get(STABLE) or (
            Decision(model.stable, STABLE, "", generation) if model.stable is not None else None
        )
        # The decisions of an experiment's variants, by name.
        self._variants = _variants(model.stable, split, generation)
        # Decisions for explicit versions, created on request.
        self._explicit: dict[str, Decision] = {}
        # The targets of an experiment: tenants, and values of headers.
        self._tenants, self._headers = _targets(split)
        # Whether the experiment has targets; then call `targets` before `decide`.
        self.targeted = bool(self._tenants or self._headers)

    @property
    def stable(self) -> Decision | None:
        """The decision for requests outside every split, and for fallbacks."""
        return self._stable

    def targets(self, tenant: str, headers: dict[bytes, bytes]) -> bool:
        """Return whether a request takes part in a targeted split."""
        if self._tenants and tenant not in self._tenants:
            return False
        return all(headers.get(name) in values for name, values in self._headers)

    @property
    def untargeted(self) -> Decision:
        """The decision for requests that a targeted split does not include: stable."""
        assert self._stable is not None
        return self._stable

    def decide(self, unit: str | None, draw: Draw = randrange) -> Decision:
        """Return the decision for `unit`. Raises Refusal (503)."""
        return self.place(unit, draw)[0]

    def place(self, unit: str | None, draw: Draw = randrange) -> tuple[Decision, int]:
        """Return the decision for `unit` and its bucket; NO_BUCKET without one.

        Without a unit `draw(10000)` replaces each bucket. Raises Refusal (503) for a model without
        a stable version.
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
        """Return the decision for a request that names its version, outside any split.

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
    """Return the decisions of a canary; all carry its id, so that they can be compared."""
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
    """Return the tenants and the headers, as received, that an experiment targets."""
    if not isinstance(split, ExperimentSplit):
        return frozenset(), ()
    headers = tuple(
        (name.lower().encode(), frozenset(value.encode() for value in values))
        for name, values in sorted(split.headers.items())
    )
    return frozenset(split.tenants), headers
