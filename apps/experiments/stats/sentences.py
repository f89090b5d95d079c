"""The verdict as one plain sentence that carries its numbers."""

from __future__ import annotations

from apps.experiments.stats.analysis import Analysis, ArmComparison
from apps.experiments.stats.arms import ArmSummary, Kind
from apps.experiments.stats.comparison import P_MIN, State


def sentence(result: Analysis) -> str:
    """What a person should take from `result`, in its metric's unit."""
    if result.state is State.NOT_ENOUGH_DATA:
        return f"Not enough data: {result.reason}."
    if result.state in (State.SRM, State.UNEXPECTED_UNITS):
        return f"No verdict: {result.reason}; find the cause before reading any result."
    leading = result.leading
    if result.state is not State.OK or leading is None:
        return f"No verdict: {result.reason}."
    arm = next(arm for arm in result.arms if arm.name == leading.arm)
    control = result.control
    numbers = _numbers(leading, arm, control, result.kind)
    if leading.outcome == "undecided":
        when = "at the planned size" if result.phase == "final" else "yet"
        return f"No difference between {arm.name} and {control.name} is shown {when}: {numbers}."
    return f"{arm.name} is {leading.outcome} than {control.name}: {numbers}."


def _numbers(compared: ArmComparison, arm: ArmSummary, control: ArmSummary, kind: Kind) -> str:
    reading = compared.reading
    told = f"{_level(arm.mean, kind)} against {_level(control.mean, kind)}"
    if compared.difference is None or reading.low is None or reading.high is None:
        return told
    unit = " points" if kind == "proportion" else ""
    told += (
        f", {_change(compared.difference, kind)}{unit} "
        f"({100.0 * (1.0 - reading.alpha):.4g}% interval "
        f"{_change(reading.low, kind)} to {_change(reading.high, kind)})"
    )
    if reading.p_value is None:
        return told
    return (
        f"{told}, p = {reading.p_value:.2g}" if reading.p_value > P_MIN else f"{told}, p < {P_MIN}"
    )


def _level(value: float, kind: Kind) -> str:
    return f"{100.0 * value:.3g}%" if kind == "proportion" else f"{value:.5g}"


def _change(value: float, kind: Kind) -> str:
    return f"{100.0 * value:+.3g}" if kind == "proportion" else f"{value:+.4g}"
