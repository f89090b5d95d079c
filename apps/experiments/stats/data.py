"""What the statistics are given: sufficient statistics of an experiment, from whatever source.

PostgreSQL, Parquet files and warehouses all answer in these, and a report is a function of them.
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
    """A variant; weights are those of now, in basis points."""

    name: str
    weight_bp: int
    is_control: bool = False


@dataclass(frozen=True)
class MetricSpec:
    """What is asked of a metric.

    `margin` is a guardrail's, in the metric's unit: how much worse is tolerable. `quantile` is in
    (0, 1). Each unit has the values y, of a ratio also its denominator, and with a covariate the
    same of the time before its exposure: (y), (y, d), (y, x) or (y, d, xy, xd). `is_capped` says
    that y counts as a cap at most.
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
        """How many values each unit has."""
        return (2 if self.kind == "ratio" else 1) * (2 if self.has_covariate else 1)


@dataclass(frozen=True)
class OrderStatistics:
    """Of one arm's n values in ascending order: those at the ranks of `quantiles.ranks_of`.

    `value` is the sample quantile, and `equal` is how many of the n values are equal to it.
    """

    n: int
    values: tuple[float, ...]
    value: float
    equal: int


class Stratum(NamedTuple):
    """Which units are compared with each other: those of one phase and one level.

    `phase` numbers, in order of time, the spans in which every arm's share of the units is the
    same: an experiment's weight phases, a rollout's steps. A unit belongs to the phase in which it
    was exposed. Units of different phases are never compared, nor counted together. `level` is that
    of the stratifying dimension; levels of one phase may be counted together where they are small.
    """

    phase: int = 0
    level: str = ""


@dataclass(frozen=True)
class ArmData:
    """What was seen of one arm for one metric.

    `comoments` are all of the arm's units. `strata` divide them, as `estimates.estimate` compares
    them (see `stats.strata`): by phase as soon as there is more than one, by level where there is a
    stratifying dimension; empty where there is neither. `order` are of the units of the last phase
    alone, as quantiles of several phases cannot be put together. `counts` are the units per bin of
    the metric's `edges`: one more than there are edges, since the first bin lies below the first
    edge and the last one from the last edge on.
    """

    comoments: Comoments
    order: OrderStatistics | None = None
    counts: tuple[int, ...] = ()
    strata: Mapping[Stratum, Comoments] = field(default_factory=dict)


@dataclass(frozen=True)
class MetricData:
    """`arms` by name. `breakdowns` are {dimension: {level: {arm: its units of that level}}}, whose
    strata are their phases.
    """

    spec: MetricSpec
    arms: dict[str, ArmData]
    edges: tuple[float, ...] = ()
    breakdowns: dict[str, dict[str, dict[str, ArmData]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Phase:
    """A span with the same weights: units first met in it, by arm, and what each arm should get.

    Units that moved in a later phase are in neither: `shares` are of the buckets that stayed.
    `weights_bp` are those of all buckets, and `at` is when they began to hold.
    """

    units: dict[str, int]
    shares: dict[str, float]
    at: datetime | None = None
    weights_bp: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ExperimentData:
    """`exposed` are the units that count, by arm; the phases, in order of time, divide them."""

    arms: tuple[ArmSpec, ...]
    exposed: dict[str, int]
    phases: tuple[Phase, ...]
    metrics: tuple[MetricData, ...]
