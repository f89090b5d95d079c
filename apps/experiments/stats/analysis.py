"""The shape of a result for pages, API and storage: states and numbers, null instead of NaN."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from apps.experiments.stats.arms import ArmSummary, Kind
from apps.experiments.stats.comparison import Reading, State, UpliftState
from apps.experiments.stats.srm import SampleRatio

Direction = Literal["increase", "decrease"]
Outcome = Literal["better", "worse", "undecided"]
Phase = Literal["running", "final"]


@dataclass(frozen=True)
class ArmComparison:
    """One treatment against control.

    `difference` and `standard_error` are in the metric's unit, `uplift` is a fraction of control's
    mean; each is None where it does not exist. `deciding` names the reading the outcome comes from.
    """

    arm: str
    state: State
    reason: str
    outcome: Outcome
    test: str
    difference: float | None
    standard_error: float | None
    uplift: float | None
    deciding: Literal["sequential", "fixed-horizon"]
    sequential: Reading
    fixed: Reading

    @property
    def reading(self) -> Reading:
        return self.sequential if self.deciding == "sequential" else self.fixed

    @property
    def is_significant(self) -> bool:
        return self.outcome != "undecided"

    @property
    def uplift_state(self) -> UpliftState:
        return self.reading.uplift_state


@dataclass(frozen=True)
class Analysis:
    """The result of one metric. `verdict` is one plain sentence; `winner` an arm's name, or None.

    The number properties tell of the leading comparison: the winner's, else the first significant
    one's, else the first. They are None where there is no such number, never NaN.
    """

    kind: Kind
    direction: Direction
    alpha: float
    planned_units: int | None
    phase: Phase
    arms: tuple[ArmSummary, ...]
    state: State = State.NOT_ENOUGH_DATA
    reason: str = ""
    verdict: str = ""
    winner: str | None = None
    sample_ratio: SampleRatio | None = None
    comparisons: tuple[ArmComparison, ...] = ()

    @property
    def is_significant(self) -> bool:
        return any(compared.is_significant for compared in self.comparisons)

    @property
    def control(self) -> ArmSummary:
        return next(arm for arm in self.arms if arm.is_control)

    @property
    def leading(self) -> ArmComparison | None:
        ranked = [c for c in self.comparisons if c.arm == self.winner]
        ranked += [c for c in self.comparisons if c.is_significant]
        ranked += self.comparisons
        return ranked[0] if ranked else None

    @property
    def p_value(self) -> float | None:
        return self.leading.reading.p_value if self.leading else None

    @property
    def interval(self) -> tuple[float, float] | None:
        return _pair(self.leading.reading.low, self.leading.reading.high) if self.leading else None

    @property
    def uplift(self) -> float | None:
        return self.leading.uplift if self.leading else None

    @property
    def uplift_interval(self) -> tuple[float, float] | None:
        if self.leading is None:
            return None
        return _pair(self.leading.reading.uplift_low, self.leading.reading.uplift_high)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; what is not a finite number becomes null beside its state."""
        shown = asdict(self)
        for row, compared in zip(shown["comparisons"], self.comparisons, strict=True):
            row["is_significant"] = compared.is_significant
            row["uplift_state"] = compared.uplift_state
        shown["is_significant"] = self.is_significant
        shown["leading"] = self.leading.arm if self.leading else None
        shown["p_value"] = self.p_value
        shown["interval"] = self.interval
        shown["uplift"] = self.uplift
        shown["uplift_interval"] = self.uplift_interval
        cleaned: dict[str, Any] = plain(shown)
        return cleaned


def _pair(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)


def plain(value: Any) -> Any:
    """Return plain JSON types; what is not a finite number becomes None."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, State | UpliftState) else value
