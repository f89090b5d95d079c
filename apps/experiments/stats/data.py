"""Sufficient statistics of an experiment: the input of a report, independent of the source.

PostgreSQL, Parquet files and warehouses all return these types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple

from apps.experiments.stats.comoments import Comoments

MetricKind = Literal["proportion", "mean", "ratio", "quantile"]
Role = Literal["primary", "secondary", "guardrail"]


@dataclass(frozen=True)
class ArmSpec:
    """A variant with its current weight in basis points."""

    name: str
    weight_bp: int
    is_control: bool = False


@dataclass(frozen=True)
class MetricSpec:
    """The definition of a metric.

    `margin` is a guardrail's non-inferiority margin, in the metric's unit. `quantile` is in (0, 1).
    The values of a unit are (y), for a ratio (y, d) with its denominator. With a covariate the
    pre-exposure values follow: (y, x) or (y, d, xy, xd). With `is_capped`, y is winsorised at a
    cap.
    """

    name: str
    role: Role
    kind: MetricKind
    is_increase_better: bool = True
    margin: float | None = None
    quantile: float | None = None
    has_covariate: bool = False
    mann_whitney: bool = False
    is_capped: bool = False

    @property
    def width(self) -> int:
        """The number of values of each unit."""
        return (2 if self.kind == "ratio" else 1) * (2 if self.has_covariate else 1)


@dataclass(frozen=True)
class OrderStatistics:
    """The values of one arm at the ranks of `quantiles.ranks_of`, in ascending order.

    `n` is the number of all values of the arm, `value` the sample quantile, and `equal` the number
    of values that equal it.
    """

    n: int
    values: tuple[float, ...]
    value: float
    equal: int


class Stratum(NamedTuple):
    """A set of units that are compared with each other: those of one phase and one level.

    A phase is a time span in which each arm's share of the units is constant: an experiment's
    weight phase, or a rollout's step. `phase` is its index in order of time. A unit belongs to the
    phase of its exposure. Units of different phases are never compared or pooled. `level` is the
    level of the stratifying dimension; small levels of one phase may be pooled.
    """

    phase: int = 0
    level: str = ""


@dataclass(frozen=True)
class ArmData:
    """The statistics of one metric in one arm.

    `comoments` cover all units of the arm. `strata` divide these units as `estimates.estimate`
    compares them (see `stats.strata`): by phase if there are several, and by level if there is a
    stratifying dimension; else it is empty. `order` covers only the units of the last phase, since
    quantiles of several phases cannot be combined. `counts` are the units per bin of the metric's
    `edges`. There is one more bin than there are edges: the first bin lies below the first edge,
    the last bin starts at the last edge.
    """

    comoments: Comoments
    order: OrderStatistics | None = None
    counts: tuple[int, ...] = ()
    strata: Mapping[Stratum, Comoments] = field(default_factory=dict)


@dataclass(frozen=True)
class MetricData:
    """The statistics of one metric.

    `arms` are by name. `breakdowns` are {dimension: {level: {arm: its units of that level}}}; their
    strata are the phases.
    """

    spec: MetricSpec
    arms: dict[str, ArmData]
    edges: tuple[float, ...] = ()
    breakdowns: dict[str, dict[str, dict[str, ArmData]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Phase:
    """A time span with constant weights: the units exposed in it and the expected share, by arm.

    Units whose bucket moved in a later phase are in neither: `shares` refer to the buckets that did
    not move. `weights_bp` refer to all buckets; they are in effect since `at`.
    """

    units: dict[str, int]
    shares: dict[str, float]
    at: datetime | None = None
    weights_bp: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ExperimentData:
    """The input of a report. `exposed` are the units that count, by arm; the phases divide them."""

    arms: tuple[ArmSpec, ...]
    exposed: dict[str, int]
    phases: tuple[Phase, ...]
    metrics: tuple[MetricData, ...]
