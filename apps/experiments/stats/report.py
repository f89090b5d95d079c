"""Evaluates all metrics of an experiment: the report that pages, the API and storage use.

The primary metric decides; its treatments share α. The secondary metrics are a family of their own.
Each guardrail metric is tested for deterioration, and for non-inferiority by its margin. A sample
ratio mismatch stops all verdicts. The sequential and the fixed-horizon reading of a comparison have
half of α each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

from apps.experiments.stats import bayes, estimates
from apps.experiments.stats.breakdown import break_down
from apps.experiments.stats.checks import invalid_reason
from apps.experiments.stats.comparison import Reading, State, read_fixed
from apps.experiments.stats.data import ArmSpec, ExperimentData, MetricData, MetricSpec
from apps.experiments.stats.estimates import Estimate
from apps.experiments.stats.families import benjamini_hochberg, holm, holm_levels
from apps.experiments.stats.margins import judge_margin
from apps.experiments.stats.ranks import mann_whitney_p
from apps.experiments.stats.report_sentences import (
    heavy_unit_notices,
    metric_sentence,
    report_sentence,
)
from apps.experiments.stats.sequential import read_sequential
from apps.experiments.stats.shapes import Arm, Compared, Distribution, MetricReport, Report
from apps.experiments.stats.srm import SampleRatio, check_phases
from apps.experiments.stats.strata import has_several_phases
from apps.experiments.stats.wording import Basis, Outcome, Phase

__all__ = ["Report", "make_report"]

STOPPED = (State.SRM, State.UNEXPECTED_UNITS)


@dataclass(frozen=True)
class _Plan:
    """How to read a family of comparisons.

    `alpha` is that of each reading, for the whole family.
    """

    data: ExperimentData
    alpha: float
    planned_units: int
    phase: Phase


def make_report(
    data: ExperimentData, *, alpha: float, planned_units: int, is_final: bool = False
) -> Report:
    """Evaluate all metrics of `data`, with an error rate of the primary metric of at most `alpha`.

    `planned_units` counts all arms together. The fixed-horizon reading decides only with `is_final`
    and once the planned size is reached; an early stop is a look like any other.

    Raises:
        ValueError: the arms have not exactly one control or share a name, the first metric is not
            the only primary one, or alpha or the planned size is out of range.
    """
    _check(data, alpha, planned_units)
    reached = sum(data.exposed.get(arm.name, 0) for arm in data.arms) >= planned_units
    plan = _Plan(data, alpha / 2.0, planned_units, "final" if is_final and reached else "running")
    ratio = _sample_ratio(data, is_one_look=plan.phase == "final")
    primary, others = data.metrics[0], data.metrics[1:]
    secondary = [metric for metric in others if metric.spec.role == "secondary"]
    guardrails = [metric for metric in others if metric.spec.role == "guardrail"]
    judged = {primary.spec.name: _family(plan, [primary], ratio)[0]}
    for metric, metric_report in zip(secondary, _family(plan, secondary, ratio), strict=True):
        judged[metric.spec.name] = metric_report
    for metric in guardrails:
        each = replace(plan, alpha=plan.alpha / len(guardrails))
        judged[metric.spec.name] = _guardrail(plan, metric, _family(each, [metric], ratio)[0])
    reports = tuple(_with_verdict(judged[metric.spec.name], plan.phase) for metric in data.metrics)
    level = plan.alpha
    breakdowns = tuple(
        breakdown
        for metric in data.metrics
        for breakdown in break_down(
            metric, data.arms, level, planned_units, is_stopped=_stops(ratio)
        )
    )
    report = Report(plan.phase, alpha, planned_units, ratio, reports, breakdowns)
    return replace(report, verdict=report_sentence(report))


def _check(data: ExperimentData, alpha: float, planned_units: int) -> None:
    if sum(arm.is_control for arm in data.arms) != 1:
        raise ValueError("exactly one arm must be the control")
    if len({arm.name for arm in data.arms}) != len(data.arms):
        raise ValueError("arms must have different names")
    roles = [metric.spec.role for metric in data.metrics]
    if not roles or roles[0] != "primary" or "primary" in roles[1:]:
        raise ValueError("exactly one metric must be primary, and it must be the first")
    if not 0.0 < alpha < 1.0 or planned_units < 1:
        raise ValueError("alpha must be between 0 and 1, and the planned size at least 1")


def _stops(ratio: SampleRatio) -> bool:
    return ratio.state in STOPPED


def _sample_ratio(data: ExperimentData, *, is_one_look: bool) -> SampleRatio:
    names = [arm.name for arm in data.arms]
    phases = [
        ([p.units.get(name, 0) for name in names], [p.shares.get(name, 0.0) for name in names])
        for p in data.phases
        if sum(p.shares.get(name, 0.0) for name in names) > 0.0
    ]
    if not phases:
        nothing = tuple(0 for _ in names)
        empty = tuple(0.0 for _ in names)
        return SampleRatio(State.NOT_ENOUGH_DATA, "no units to compare", nothing, empty)
    return check_phases(phases, is_one_look=is_one_look)


# --- one family of comparisons -------------------------------------------------------------------


class _Basis(TypedDict):
    basis: Basis
    phases: int
    left_out: int


@dataclass(frozen=True)
class _Pair:
    metric: MetricData
    arm: ArmSpec
    estimate: Estimate


def _family(plan: _Plan, metrics: Sequence[MetricData], ratio: SampleRatio) -> list[MetricReport]:
    """Read all comparisons of `metrics` as one family, with Holm's procedure for each reading."""
    control = next(arm for arm in plan.data.arms if arm.is_control)
    treatments = [arm for arm in plan.data.arms if not arm.is_control]
    pairs = [
        _Pair(metric, arm, estimates.compare_arms(metric, control.name, arm.name))
        for metric in metrics
        for arm in treatments
    ]
    read = _readings(plan, pairs)
    rows: dict[str, list[Compared]] = {metric.spec.name: [] for metric in metrics}
    p_values = [
        fixed.p_value if plan.phase == "final" else _family_p(pair, running)
        for pair, (running, fixed) in zip(pairs, read, strict=True)
    ]
    adjusted = zip(holm(p_values), benjamini_hochberg(p_values), strict=True)
    for pair, (running, fixed), (p_holm, q_bh) in zip(pairs, read, adjusted, strict=True):
        compared = _compared(plan, pair, control.name, running, fixed)
        rows[pair.metric.spec.name].append(replace(compared, p_holm=p_holm, q_bh=q_bh))
    return [_metric_report(plan, metric, rows[metric.spec.name], ratio) for metric in metrics]


def _readings(plan: _Plan, pairs: Sequence[_Pair]) -> list[tuple[Reading, Reading]]:
    """Return the sequential and the fixed-horizon reading of each pair, at its Holm level."""
    base = plan.alpha / max(1, len(pairs))

    def running(pair: _Pair, level: float) -> Reading:
        share = pair.estimate.level_share
        return read_sequential(
            pair.estimate.difference,
            n=pair.estimate.n,
            alpha=level * share,
            planned_units=plan.planned_units,
            wait_reason=pair.estimate.wait_reason,
            tuned_alpha=base * share,
        )

    first = [(running(pair, base), read_fixed(pair.estimate.difference, base)) for pair in pairs]
    running_p = [_family_p(pair, reading) for pair, (reading, _) in zip(pairs, first, strict=True)]
    levels = holm_levels(running_p, plan.alpha)
    fixed_levels = holm_levels([f.p_value for _, f in first], plan.alpha)
    return [
        (running(pair, level), read_fixed(pair.estimate.difference, fixed_level))
        for pair, level, fixed_level in zip(pairs, levels, fixed_levels, strict=True)
    ]


def _family_p(pair: _Pair, reading: Reading) -> float | None:
    """Return a sequential p-value on the scale of the full level: see `level_share`."""
    if reading.p_value is None:
        return None
    return min(1.0, reading.p_value / pair.estimate.level_share)


def _compared(plan: _Plan, pair: _Pair, control: str, running: Reading, fixed: Reading) -> Compared:
    spec, difference = pair.metric.spec, pair.estimate.difference
    decides = fixed if plan.phase == "final" else running
    values = [
        estimates.value_of(spec, pair.metric.arms[name])
        for name in (control, pair.arm.name)
        if name in pair.metric.arms
    ]
    is_known = len(values) == 2 and None not in values
    basis = _basis(pair, control)
    if pair.estimate.phase_summary is not None:
        values = [pair.estimate.phase_summary.control, pair.estimate.phase_summary.treatment]
        is_known = is_known and pair.estimate.phase_summary.phases > 0
    return Compared(
        arm=pair.arm.name,
        state=decides.state,
        reason=decides.reason,
        outcome=_outcome(spec, difference.effect, decides),
        test=difference.test,
        difference=difference.effect if is_known else None,
        standard_error=difference.standard_error or None,
        uplift=difference.uplift if is_known else None,
        uplift_state=decides.uplift_state,
        deciding="fixed-horizon" if plan.phase == "final" else "sequential",
        is_significant=decides.is_significant,
        sequential=running,
        fixed=fixed,
        bayes=_bayes(pair, control),
        mann_whitney_p=_mann_whitney(pair, control),
        variance_reduction=pair.estimate.variance_reduction,
        **basis,
        control_value=values[0] if is_known else None,
        value=values[1] if is_known else None,
        skewness=pair.estimate.skewness,
    )


def _basis(pair: _Pair, control: str) -> _Basis:
    """Return which units were compared, the number of phases, and the units left out."""
    if pair.metric.spec.kind == "quantile":
        arms = [pair.metric.arms[n] for n in (control, pair.arm.name) if n in pair.metric.arms]
        earlier = sum(arm.comoments.n - (arm.order.n if arm.order else 0) for arm in arms)
        basis: Basis = "present-phase" if earlier else "all"
        return {"basis": basis, "phases": 1, "left_out": earlier}
    over = pair.estimate.phase_summary
    if over is None:
        return {"basis": "all", "phases": 1, "left_out": 0}
    return {"basis": "phases", "phases": over.phases, "left_out": over.left_out}


def _outcome(spec: MetricSpec, difference: float, reading: Reading) -> Outcome:
    if not reading.is_significant:
        return "undecided"
    return "better" if (difference > 0.0) == spec.is_increase_better else "worse"


def _bayes(pair: _Pair, control: str) -> bayes.Bayes | None:
    spec, difference = pair.metric.spec, pair.estimate.difference
    arms = pair.metric.arms
    if pair.estimate.phase_summary is not None and difference.exact_p is not None:
        # Too few events for a normal posterior, and rates of several phases have no common Beta.
        return None
    is_rate = spec.kind == "proportion" and pair.estimate.phase_summary is None
    if is_rate and difference.state is not State.INVALID_DATA:
        if control not in arms or pair.arm.name not in arms:
            return None
        a, b = arms[control].comoments, arms[pair.arm.name].comoments
        if (
            min(a.n, b.n) == 0
            or invalid_reason(spec, arms[control])
            or invalid_reason(spec, arms[pair.arm.name])
        ):
            return None
        return bayes.posterior_of_rates(
            a.n,
            round(a.means[0] * a.n),
            b.n,
            round(b.means[0] * b.n),
            is_increase_better=spec.is_increase_better,
        )
    if difference.state is not State.OK:
        return None
    return bayes.posterior_of_difference(
        difference.effect,
        difference.standard_error,
        difference.control_mean,
        is_increase_better=spec.is_increase_better,
    )


def _mann_whitney(pair: _Pair, control: str) -> float | None:
    arms = pair.metric.arms
    if not pair.metric.spec.mann_whitney or control not in arms or pair.arm.name not in arms:
        return None
    if has_several_phases(arms[control], arms[pair.arm.name]):
        # The counts pool all phases.
        return None
    return mann_whitney_p(arms[control].counts, arms[pair.arm.name].counts)


# --- one metric ----------------------------------------------------------------------------------


def _metric_report(
    plan: _Plan, metric: MetricData, compared: Sequence[Compared], ratio: SampleRatio
) -> MetricReport:
    spec = metric.spec
    report = MetricReport(
        name=spec.name,
        role=spec.role,
        kind=spec.kind,
        direction="increase" if spec.is_increase_better else "decrease",
        quantile=spec.quantile,
        margin=spec.margin,
        arms=tuple(_arm(plan.data, metric, arm) for arm in plan.data.arms),
        comparisons=tuple(compared),
        distribution=Distribution(
            metric.edges, {name: arm.counts for name, arm in metric.arms.items() if arm.counts}
        ),
        notices=heavy_unit_notices(metric),
    )
    invalid = _invalid(metric)
    if invalid is not None:
        return _without_verdict(report, State.INVALID_DATA, invalid)
    if _stops(ratio):
        return _without_verdict(report, ratio.state, ratio.reason)
    if not compared:
        return replace(report, reason="the experiment has no treatment to compare with control")
    judged = next((c for c in compared if c.state is State.OK), compared[0])
    return replace(report, state=judged.state, reason=judged.reason, winner=_winner(compared))


def _invalid(metric: MetricData) -> str | None:
    for name, arm in metric.arms.items():
        if (reason := invalid_reason(metric.spec, arm)) is not None:
            return f"{name}: {reason}"
    return None


def _arm(data: ExperimentData, metric: MetricData, arm: ArmSpec) -> Arm:
    arm_data = metric.arms.get(arm.name)
    if arm_data is None:
        exposed = data.exposed.get(arm.name, 0)
        return Arm(arm.name, arm.is_control, arm.weight_bp, exposed, 0, None, None)
    is_order = metric.spec.kind == "quantile"
    n = arm_data.comoments.n
    if is_order:
        n = arm_data.order.n if arm_data.order else 0
    variance = (
        None if metric.spec.kind in ("ratio", "quantile") else arm_data.comoments.covariance(0, 0)
    )
    return Arm(
        name=arm.name,
        is_control=arm.is_control,
        weight_bp=arm.weight_bp,
        exposed=data.exposed.get(arm.name, 0),
        n=n,
        mean=estimates.value_of(metric.spec, arm_data),
        sd=variance**0.5 if variance is not None and variance >= 0.0 else None,
    )


def _without_verdict(report: MetricReport, state: State, reason: str) -> MetricReport:
    """Return the report with its numbers, but without any significant comparison."""
    comparisons = tuple(
        replace(
            compared,
            state=state,
            reason=reason,
            outcome="undecided",
            is_significant=False,
            sequential=replace(compared.sequential, is_significant=False),
            fixed=replace(compared.fixed, is_significant=False),
        )
        for compared in report.comparisons
    )
    return replace(report, state=state, reason=reason, comparisons=comparisons)


def _winner(comparisons: Sequence[Compared]) -> str | None:
    better = [c for c in comparisons if c.outcome == "better" and c.difference is not None]
    best = max(better, key=lambda c: abs(c.difference or 0.0), default=None)
    return best.arm if best else None


def _guardrail(plan: _Plan, metric: MetricData, report: MetricReport) -> MetricReport:
    """Add the non-inferiority verdict to each comparison."""
    control = next(arm for arm in plan.data.arms if arm.is_control)
    is_final = plan.phase == "final"
    estimated = {
        c.arm: estimates.compare_arms(metric, control.name, c.arm) for c in report.comparisons
    }
    judged = tuple(
        replace(
            compared,
            non_inferiority=judge_margin(
                metric.spec,
                estimated[compared.arm],
                estimates.rare_event_counts(metric, control.name, compared.arm),
                alpha=plan.alpha,
                planned_units=plan.planned_units,
                is_final=is_final,
                is_worse=compared.outcome == "worse",
                stop_reason=compared.reason
                if report.state in (*STOPPED, State.INVALID_DATA)
                else "",
            ),
        )
        for compared in report.comparisons
    )
    return replace(report, comparisons=judged)


def _with_verdict(report: MetricReport, phase: Phase) -> MetricReport:
    return replace(report, verdict=metric_sentence(report, phase))
