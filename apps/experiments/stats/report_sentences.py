"""Formats the verdict of a report as sentences with their numbers."""

from __future__ import annotations

from apps.experiments.stats.comparison import P_MIN, State
from apps.experiments.stats.data import MetricData
from apps.experiments.stats.shapes import Arm, Compared, MetricReport, Report
from apps.experiments.stats.skewness import heaviest_share
from apps.experiments.stats.wording import Phase

STOPPED = (State.SRM, State.UNEXPECTED_UNITS)


def report_sentence(report: Report) -> str:
    """Return the conclusion of the experiment: the primary metric, then worse guardrails."""
    sentence = report.primary.verdict
    if report.primary.state in STOPPED:
        return sentence
    worse = [
        f"{metric.name} is worse with {compared.arm}"
        for metric in report.metrics
        if metric.role == "guardrail"
        for compared in metric.comparisons
        if _is_worse(compared) and report.primary.winner in (None, compared.arm)
    ]
    if not worse:
        return sentence
    advice = ": do not ship it" if report.primary.winner else ""
    return f"{sentence} But guardrail {', and '.join(worse)}{advice}."


def _is_worse(compared: Compared) -> bool:
    judged = compared.non_inferiority
    return judged is not None and (judged.state == "worse" or judged.deteriorated)


def _is_within(report: MetricReport) -> bool:
    """Return whether a guardrail is within its margin for every arm, even without any event."""
    judged = [compared.non_inferiority for compared in report.comparisons]
    return bool(judged) and all(each is not None and each.state == "not-worse" for each in judged)


def metric_sentence(report: MetricReport, phase: Phase) -> str:
    """Return the verdict of one metric in its own unit, and which units it compares if not all."""
    return " ".join(filter(None, [_sentence(report, phase), _basis(report)]))


def _basis(report: MetricReport) -> str:
    leading = report.leading
    if leading is None or leading.basis == "all" or report.state in STOPPED:
        return ""
    if leading.basis == "present-phase":
        return (
            "Only units exposed since the last change of weights are compared, not the "
            f"{leading.left_out:,} before it: quantiles of several phases cannot be combined."
        )
    sentence = f"Units of {leading.phases} weight phases are compared, each within its own phase"
    if leading.phases == 1:
        sentence = "Units of one weight phase are compared"
    if leading.phases == 0:
        sentence = "No weight phase has enough units of both arms"
    if leading.left_out:
        sentence += (
            f"; {leading.left_out:,} units of phases or levels with too few units of an arm "
            "are left out"
        )
    return f"{sentence}."


def _sentence(report: MetricReport, phase: Phase) -> str:
    if report.state in (State.NOT_ENOUGH_DATA, State.NO_VARIANCE) and _is_within(report):
        return f"No arm is worse by the margin: {report.reason}."
    if report.state is State.NOT_ENOUGH_DATA:
        return f"Not enough data: {report.reason}."
    if report.state in STOPPED:
        return f"No verdict: {report.reason}; find the cause before reading any result."
    leading = report.leading
    if report.state is not State.OK or leading is None:
        return f"No verdict: {report.reason}."
    arm = next(arm for arm in report.arms if arm.name == leading.arm)
    control = report.control
    numbers = _numbers(leading, arm, control, report.kind)
    if leading.outcome == "undecided":
        when = "at the planned size" if phase == "final" else "yet"
        numbers = f"{leading.reason}; {numbers}" if leading.reason else numbers
        return f"No difference between {arm.name} and {control.name} is shown {when}: {numbers}."
    return f"{arm.name} is {leading.outcome} than {control.name}: {numbers}."


def _numbers(compared: Compared, arm: Arm, control: Arm, kind: str) -> str:
    reading = compared.reading
    value, control_value = arm.mean, control.mean
    if compared.basis == "phases":
        value, control_value = compared.value, compared.control_value
    text = f"{_level(value, kind)} against {_level(control_value, kind)}"
    if compared.difference is None or reading.low is None or reading.high is None:
        return text
    unit = " points" if kind == "proportion" else ""
    text += (
        f", {_change(compared.difference, kind)}{unit} "
        f"({100.0 * (1.0 - reading.alpha):.4g}% interval "
        f"{_change(reading.low, kind)} to {_change(reading.high, kind)})"
    )
    if reading.p_value is None:
        return text
    return (
        f"{text}, p = {reading.p_value:.2g}" if reading.p_value > P_MIN else f"{text}, p < {P_MIN}"
    )


def _level(value: float | None, kind: str) -> str:
    if value is None:
        return "nothing"
    return f"{100.0 * value:.3g}%" if kind == "proportion" else f"{value:.5g}"


def _change(value: float, kind: str) -> str:
    return f"{100.0 * value:+.3g}" if kind == "proportion" else f"{value:+.4g}"


def heavy_unit_notices(metric: MetricData) -> tuple[str, ...]:
    """Return a sentence for each arm in which one unit has most of the metric's sum."""
    if metric.spec.kind not in ("mean", "ratio"):
        return ()
    shares = {name: heaviest_share(arm.comoments) for name, arm in metric.arms.items()}
    advice = "" if metric.spec.is_capped else "; set a cap to limit the weight of one unit"
    return tuple(
        f"One unit has {_percent(share)} of {name}'s sum of {metric.spec.name}{advice}."
        for name, share in shares.items()
        if share is not None
    )


def _percent(share: float) -> str:
    """Format a share in percent; a share below 1 never shows as all."""
    return "all" if share >= 1.0 else f"{min(99.9, 100.0 * share):.3g}%"
