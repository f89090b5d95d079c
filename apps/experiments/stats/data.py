"""What the statistics are given: sufficient statistics of an experiment, from whatever source.

PostgreSQL, Parquet files and warehouses all answer in these, and a report is a function of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

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
    """Of one arm's n values in ascending order: those at the ranks of `quantiles.ranks_of`."""

    n: int
    low: float
    value: float
    high: float


@dataclass(frozen=True)
class ArmData:
    """What was seen of one arm for one metric.

    `counts` are its units per bin of the metric's `edges`: one more than there are edges, since the
    first bin lies below the first edge and the last one from the last edge on. `strata` divide the
    same units by the level of the stratifying dimension.
    """

    comoments: Comoments
    order: OrderStatistics | None = None
    counts: tuple[int, ...] = ()
    strata: dict[str, Comoments] = field(default_factory=dict)


@dataclass(frozen=True)
class MetricData:
    """`arms` by name. `breakdowns` are {dimension: {level: {arm: its units of that level}}}."""

    spec: MetricSpec
    arms: dict[str, ArmData]
    edges: tuple[float, ...] = ()
    breakdowns: dict[str, dict[str, dict[str, Comoments]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Phase:
    """A span with the same weights: units first met in it, by arm, and what each arm should get.

    Units that moved in a later phase are in neither: `shares` are of the buckets that stayed.
    """

    units: dict[str, int]
    shares: dict[str, float]


@dataclass(frozen=True)
class ExperimentData:
    """`exposed` are the units that count, by arm; the phases divide them."""

    arms: tuple[ArmSpec, ...]
    exposed: dict[str, int]
    phases: tuple[Phase, ...]
    metrics: tuple[MetricData, ...]
