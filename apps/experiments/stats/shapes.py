"""The types of a report for pages, the API and storage. JSON has null instead of NaN."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from apps.experiments.stats.bayes import Bayes
from apps.experiments.stats.breakdown import Breakdown
from apps.experiments.stats.comparison import Reading, State, UpliftState
from apps.experiments.stats.data import Role
from apps.experiments.stats.margins import MarginVerdict
from apps.experiments.stats.srm import SampleRatio
from apps.experiments.stats.wording import Basis, Direction, Outcome, Phase, plain

SCHEMA = 2


@dataclass(frozen=True)
class Arm:
    """One arm of one metric. `mean` is the metric's value: a rate, mean, ratio or quantile."""

    name: str
    is_control: bool
    weight_bp: int
    exposed: int
    n: int
    mean: float | None
    sd: float | None


@dataclass(frozen=True)
class Compared:
    """One treatment against control, for one metric.

    `p_holm` and `q_bh` are adjusted over the metric's family. `skewness` is that of the units'
    values as compared. `basis` says which units were compared: `all` together, each within its own
    phase (`phases`; the field `phases` has their number), or those of the `present-phase` only.
    `left_out` counts the units that were not compared, such as those of a phase in which an arm has
    too few units. `control_value` and `value` are the metric in control and in the arm as compared,
    averaged over phases with the same weights in both.
    """

    arm: str
    state: State
    reason: str
    outcome: Outcome
    test: str
    difference: float | None
    standard_error: float | None
    uplift: float | None
    uplift_state: UpliftState
    deciding: Literal["sequential", "fixed-horizon"]
    is_significant: bool
    sequential: Reading
    fixed: Reading
    p_holm: float | None = None
    q_bh: float | None = None
    bayes: Bayes | None = None
    mann_whitney_p: float | None = None
    variance_reduction: float | None = None
    non_inferiority: MarginVerdict | None = None
    basis: Basis = "all"
    phases: int = 1
    left_out: int = 0
    control_value: float | None = None
    value: float | None = None
    skewness: float | None = None

    @property
    def reading(self) -> Reading:
        return self.sequential if self.deciding == "sequential" else self.fixed


@dataclass(frozen=True)
class Distribution:
    """Units per bin. The first bin lies below the first edge, the last starts at the last edge."""

    edges: tuple[float, ...]
    counts: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class MetricReport:
    """The result of one metric. `winner` is the better arm with the largest effect, or None.

    `notices` are sentences on weaknesses of the numbers, such as one unit with most of the sum.
    """

    name: str
    role: Role
    kind: str
    direction: Direction
    quantile: float | None
    margin: float | None
    arms: tuple[Arm, ...]
    comparisons: tuple[Compared, ...]
    distribution: Distribution
    state: State = State.NOT_ENOUGH_DATA
    reason: str = ""
    verdict: str = ""
    winner: str | None = None
    notices: tuple[str, ...] = ()

    @property
    def is_significant(self) -> bool:
        return any(compared.is_significant for compared in self.comparisons)

    @property
    def control(self) -> Arm:
        return next(arm for arm in self.arms if arm.is_control)

    @property
    def leading(self) -> Compared | None:
        """The winner's comparison, else the first significant one, else the first."""
        ranked = [c for c in self.comparisons if c.arm == self.winner]
        ranked += [c for c in self.comparisons if c.is_significant]
        ranked += self.comparisons
        return ranked[0] if ranked else None


@dataclass(frozen=True)
class Report:
    """The result of an experiment. The first of `metrics` is the primary metric."""

    phase: Phase
    alpha: float
    planned_units: int
    sample_ratio: SampleRatio
    metrics: tuple[MetricReport, ...]
    breakdowns: tuple[Breakdown, ...] = ()
    verdict: str = ""

    @property
    def primary(self) -> MetricReport:
        return self.metrics[0]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types; a number that is not finite becomes null."""
        primary = self.primary
        document = asdict(self)
        for row, metric in zip(document["metrics"], self.metrics, strict=True):
            row["is_significant"] = metric.is_significant
        head = {
            "schema": SCHEMA,
            "state": primary.state,
            "reason": primary.reason,
            "is_significant": primary.is_significant,
            "winner": primary.winner,
            "primary": primary.name,
        }
        cleaned: dict[str, Any] = plain(head | document)
        return cleaned
