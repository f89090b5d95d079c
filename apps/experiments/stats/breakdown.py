"""Results by level of a dimension, corrected for multiplicity. They never affect a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from apps.experiments.stats.checks import invalid_reason
from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.comparison import Difference, State
from apps.experiments.stats.data import ArmData, ArmSpec, MetricData, MetricSpec
from apps.experiments.stats.estimates import Estimate, estimate
from apps.experiments.stats.families import holm, holm_levels
from apps.experiments.stats.sequential import read_sequential


@dataclass(frozen=True)
class LevelComparison:
    """One treatment against control within one level. Its interval holds at every look."""

    arm: str
    state: State
    reason: str
    n: int
    control_n: int
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    p_adjusted: float | None = None
    is_significant: bool = False


@dataclass(frozen=True)
class Level:
    level: str
    comparisons: tuple[LevelComparison, ...]


@dataclass(frozen=True)
class Breakdown:
    metric: str
    dimension: str
    levels: tuple[Level, ...]


@dataclass(frozen=True)
class _Cell:
    level: str
    arm: str
    control: ArmData
    treatment: ArmData
    estimate: Estimate


def break_down(
    metric: MetricData,
    arms: Sequence[ArmSpec],
    alpha: float,
    planned_units: int,
    *,
    is_stopped: bool = False,
) -> list[Breakdown]:
    """Compare the arms in each level of each dimension, with Holm's correction per dimension.

    With `is_stopped` (no verdict is allowed) no comparison is significant.
    """
    if metric.spec.kind == "quantile":
        return []
    control = next(arm.name for arm in arms if arm.is_control)
    treatments = [arm.name for arm in arms if not arm.is_control]
    breakdowns = []
    for dimension, levels in metric.breakdowns.items():
        cells = [
            _cell(metric.spec, level, by_arm, control, arm)
            for level, by_arm in levels.items()
            for arm in treatments
        ]
        rows = _rows(cells, alpha, planned_units)
        if is_stopped:
            rows = [replace(row, is_significant=False) for row in rows]
        per_level = len(treatments)
        shown = tuple(
            Level(level, tuple(rows[i * per_level : (i + 1) * per_level]))
            for i, level in enumerate(levels)
        )
        breakdowns.append(Breakdown(metric.spec.name, dimension, shown))
    return breakdowns


def _cell(
    spec: MetricSpec, level: str, by_arm: dict[str, ArmData], control: str, arm: str
) -> _Cell:
    empty = ArmData(Comoments.empty(spec.width))
    a, b = by_arm.get(control, empty), by_arm.get(arm, empty)
    for side in (a, b):
        if (reason := invalid_reason(spec, side)) is not None:
            unavailable = Difference(State.INVALID_DATA, reason, "", 0.0, 0.0)
            return _Cell(
                level, arm, a, b, Estimate(unavailable, a.comoments.n + b.comoments.n, reason)
            )
    return _Cell(level, arm, a, b, estimate(spec, a, b, (control, arm)))


def _rows(cells: Sequence[_Cell], alpha: float, planned_units: int) -> list[LevelComparison]:
    base = alpha / max(1, len(cells))

    def read(cell: _Cell, level: float) -> LevelComparison:
        n = cell.control.comoments.n, cell.treatment.comoments.n
        reading = read_sequential(
            cell.estimate.difference,
            n=cell.estimate.n,
            alpha=level,
            planned_units=planned_units,
            wait_reason=cell.estimate.wait_reason,
            tuned_alpha=base,
        )
        is_known = min(n) > 0 and cell.estimate.difference.state not in (
            State.INVALID_DATA,
            State.NOT_ENOUGH_DATA,
        )
        return LevelComparison(
            arm=cell.arm,
            state=reading.state,
            reason=reading.reason,
            n=n[1],
            control_n=n[0],
            difference=cell.estimate.difference.effect if is_known else None,
            low=reading.low,
            high=reading.high,
            p_value=reading.p_value,
            is_significant=reading.is_significant,
        )

    p_values = [read(cell, base).p_value for cell in cells]
    levels = holm_levels(p_values, alpha)
    return [
        replace(read(cell, level), p_adjusted=adjusted)
        for cell, level, adjusted in zip(cells, levels, holm(p_values), strict=True)
    ]
