"""Compares one arm with control for each kind of metric: from co-moments to a difference.

The uplift is always relative to control's unadjusted mean. With a covariate (CUPED) the means are
control's own, and control's plus the adjusted difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from apps.experiments.stats import strata, strata_rates
from apps.experiments.stats.checks import invalid_reason
from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.comparison import (
    Difference,
    State,
    compare_means,
    compare_rates,
    welch,
)
from apps.experiments.stats.data import ArmData, MetricData, MetricSpec, OrderStatistics
from apps.experiments.stats.quantiles import QuantileRegion, quantile_wait_reason
from apps.experiments.stats.rare_rates import EventCounts
from apps.experiments.stats.sequential import few_events_reason, sequential_wait_reason
from apps.experiments.stats.skewness import adjust_for_skewness, spread_of

# The minimum distance of a denominator's mean from 0, in standard errors, for the delta method.
DENOMINATOR_Z_MIN = 5.0
# Default names of the arms in reasons.
NAMES = ("control", "treatment")

# For each arm, control first: the weights of its values in the linear combination to compare.
Lines = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Estimate:
    """An estimated difference, and what a reading of it needs.

    `n` is the number of units compared. `wait_reason` says why no sequential reading is possible
    yet. `variance_reduction` is the share of the difference's variance that the covariate removed,
    None without one. `skewness` is that of the units' values as compared, None if unknown.
    `phase_summary` is set for an estimate over several phases. `level_share` is the part of the
    level that a sequential reading may spend; earlier phases have spent the rest.
    """

    difference: Difference
    n: int
    wait_reason: str | None
    variance_reduction: float | None = None
    skewness: float | None = None
    phase_summary: strata.PhaseSummary | None = None
    level_share: float = 1.0


def estimate(
    spec: MetricSpec, control: ArmData, treatment: ArmData, names: tuple[str, str] = NAMES
) -> Estimate:
    """Compare two arms within their strata, by the method of the metric's kind.

    Units are compared with those of their own phase and level: see `stats.strata`. Quantiles are
    those of the last phase. Reasons use `names` for the arms.
    """
    if spec.kind == "quantile":
        estimated = _quantiles(spec, control.order, treatment.order)
        return replace(estimated, level_share=strata.level_share(control, treatment))
    if strata.has_several_phases(control, treatment) or (control.strata and treatment.strata):
        return _inside_strata(spec, control, treatment, names)
    return compare(spec, control.comoments, treatment.comoments, names)


def compare_arms(metric: MetricData, control: str, treatment: str) -> Estimate:
    """Compare two arms of a metric by name; a missing arm counts as an arm without units."""
    missing = ArmData(Comoments.empty(metric.spec.width))
    arms = [metric.arms.get(name, missing) for name in (control, treatment)]
    for name, arm in zip((control, treatment), arms, strict=True):
        if (reason := invalid_reason(metric.spec, arm)) is not None:
            unavailable = Difference(State.INVALID_DATA, f"{name}: {reason}", "", 0.0, 0.0)
            return Estimate(unavailable, 0, reason)
    return estimate(metric.spec, arms[0], arms[1], (control, treatment))


def rare_event_counts(
    metric: MetricData, control: str, treatment: str
) -> tuple[EventCounts, EventCounts] | strata_rates.Rates | None:
    """Return the event counts if a rate has too few for the normal approximation, else None.

    With several phases these are the counts of each phase.
    """
    arms = [metric.arms.get(name) for name in (control, treatment)]
    if metric.spec.kind != "proportion" or metric.spec.has_covariate:
        return None
    if arms[0] and arms[1] and strata.has_several_phases(arms[0], arms[1]):
        return _rare_over_phases(arms[0], arms[1])
    a, b = (
        EventCounts(arm.comoments.n, _events(arm.comoments)) if arm else EventCounts(0, 0)
        for arm in arms
    )
    if min(a.n, b.n) == 0 or few_events_reason(a.n, b.n, (a.events, b.events)) is None:
        return None
    return a, b


def compare(
    spec: MetricSpec, control: Comoments, treatment: Comoments, names: tuple[str, str] = NAMES
) -> Estimate:
    """Compare two arms without strata: all of their units, or those of one level."""
    n = control.n + treatment.n
    if spec.kind == "proportion" and not spec.has_covariate:
        events = _events(control), _events(treatment)
        difference = compare_rates(control.n, events[0], treatment.n, events[1])
        return Estimate(difference, n, sequential_wait_reason(control.n, treatment.n, events))
    method = _ratios if spec.kind == "ratio" else _means
    difference, reduction, lines = method(spec, control, treatment)
    wait_reason = sequential_wait_reason(control.n, treatment.n)
    if difference.state is not State.OK:
        return Estimate(difference, n, wait_reason, reduction)
    arms = control, treatment
    spread = spread_of(arms, lines, _common(spec, arms, lines))
    difference = adjust_for_skewness(difference, spread, arms, names, is_capped=spec.is_capped)
    skewness = None if spread.third is None else spread.skewness
    return Estimate(difference, n, wait_reason, reduction, skewness)


def _common(spec: MetricSpec, arms: Sequence[Comoments], lines: Lines) -> Sequence[float]:
    """Return the weights for all units together: a small arm's own ratio is imprecise."""
    if spec.kind != "ratio":
        return lines[0]
    whole = arms[0].merge(arms[1])
    line = _line(whole, 0)
    if len(lines[0]) == len(line):
        return line
    # With a covariate, −θ times the weights of the pre-exposure values follow.
    theta = -lines[0][2] * arms[0].means[3]
    then = _line(whole, 2)
    return (*line, -theta * then[0], -theta * then[1])


def _means(
    spec: MetricSpec, control: Comoments, treatment: Comoments
) -> tuple[Difference, float | None, Lines]:
    difference = compare_means(control.moments(), treatment.moments())
    if not spec.has_covariate or difference.state is not State.OK:
        return difference, None, [(1.0,)] * 2
    return _adjusted(difference, control, treatment)


def value_of(spec: MetricSpec, arm: ArmData) -> float | None:
    """Return the metric's value in one arm: a rate, a mean, a ratio or a quantile."""
    if spec.kind == "quantile":
        return arm.order.value if arm.order and arm.order.n else None
    if arm.comoments.n == 0:
        return None
    if spec.kind != "ratio":
        return arm.comoments.means[0]
    top, bottom = arm.comoments.means[:2]
    return top / bottom if bottom != 0.0 else None


def _events(arm: Comoments) -> int:
    return round(arm.means[0] * arm.n)


def _linear_variance(arm: Comoments, weights: Sequence[float]) -> float:
    """Return the variance of the mean of Σ wᵢ·valueᵢ."""
    return arm.linear_square(weights) / (arm.n - 1) / arm.n


def _theta(control: Comoments, treatment: Comoments, y: tuple[float, ...]) -> float:
    """Return CUPED's θ = Cov(y, x)/Var(x), pooled within the arms (Deng et al. 2013).

    0 for constant x. `y` are the weights of the outcome's values; the covariate's have the same.
    """
    width = len(y)
    covariance = variance = 0.0
    for arm in (control, treatment):
        for i, a in enumerate(y):
            for j, b in enumerate(y):
                covariance += a * b * arm.product(i, width + j)
                variance += a * b * arm.product(width + i, width + j)
    return covariance / variance if variance > 0.0 else 0.0


def _adjusted(
    difference: Difference, control: Comoments, treatment: Comoments
) -> tuple[Difference, float, Lines]:
    """Subtract θ·(x̄_B − x̄_A) from the difference (Deng, Xu, Kohavi and Walker 2013)."""
    theta = _theta(control, treatment, (1.0,))
    shift = theta * (treatment.means[1] - control.means[1])
    before, after = [(1.0,)] * 2, [(1.0, -theta)] * 2
    return _shifted(difference, shift, (control, treatment), before, after, "cuped")


def _shifted(
    difference: Difference,
    shift: float,
    arms: tuple[Comoments, Comoments],
    plain: Lines,
    adjusted_by: Lines,
    test: str,
) -> tuple[Difference, float, Lines]:
    before = difference.standard_error**2
    noise = [_linear_variance(arm, line) for arm, line in zip(arms, adjusted_by, strict=True)]
    if sum(noise) <= 0.0 or before <= 0.0:
        return difference, 0.0, plain
    means = difference.control_mean, difference.treatment_mean - shift
    adjusted = welch(means, (noise[0], noise[1]), (arms[0].n, arms[1].n), test)
    return adjusted, 1.0 - sum(noise) / before, adjusted_by


def _ratios(
    spec: MetricSpec, control: Comoments, treatment: Comoments
) -> tuple[Difference, float | None, Lines]:
    """Compare ratios by the delta method (Deng, Knoblich and Lu 2018).

    Var(R) = (vM/D² + vD·M²/D⁴ − 2·cov·M/D³)/n.

    With a covariate the linearised values (y − R·d)/D of both periods replace y and x, which is the
    delta method on all four means.
    """
    arms = control, treatment
    test = "delta"
    for arm in arms:
        if (reason := _invalid_ratio_reason(arm)) is not None:
            ratios = [a.means[0] / a.means[1] if a.means[1] else 0.0 for a in arms]
            return Difference(State.NOT_ENOUGH_DATA, reason, test, *ratios), None, []
    ratios = [arm.means[0] / arm.means[1] for arm in arms]
    lines = [_line(arm, 0) for arm in arms]
    noise = [_linear_variance(arm, line) for arm, line in zip(arms, lines, strict=True)]
    if sum(noise) == 0.0:
        reason = "the ratios of neither arm vary"
        return Difference(State.NO_VARIANCE, reason, test, *ratios), None, lines
    n = control.n, treatment.n
    difference = welch((ratios[0], ratios[1]), (noise[0], noise[1]), n, test)
    if not spec.has_covariate or any(arm.means[3] <= 0.0 for arm in arms):
        return difference, (0.0 if spec.has_covariate else None), lines
    return _adjusted_ratios(difference, control, treatment, lines)


def _line(arm: Comoments, first: int) -> tuple[float, float]:
    top, bottom = arm.means[first], arm.means[first + 1]
    return 1.0 / bottom, -top / bottom**2


def _invalid_ratio_reason(arm: Comoments) -> str | None:
    if arm.n < 2:
        return f"each arm needs at least 2 units ({arm.n})"
    error = math.sqrt(arm.product(1, 1) / (arm.n - 1) / arm.n)
    if arm.means[1] <= 0.0 or arm.means[1] < DENOMINATOR_Z_MIN * error:
        return "the denominator is not distinguishable from 0"
    return None


def _adjusted_ratios(
    difference: Difference,
    control: Comoments,
    treatment: Comoments,
    lines: list[tuple[float, float]],
) -> tuple[Difference, float, Lines]:
    arms = control, treatment
    before = [_line(arm, 2) for arm in arms]
    covariance = variance = 0.0
    for arm, now, then in zip(arms, lines, before, strict=True):
        for i in range(2):
            for j in range(2):
                covariance += now[i] * then[j] * arm.product(i, 2 + j)
                variance += then[i] * then[j] * arm.product(2 + i, 2 + j)
    theta = covariance / variance if variance > 0.0 else 0.0
    shift = theta * (treatment.means[2] / treatment.means[3] - control.means[2] / control.means[3])
    adjusted_by = [
        (*now, -theta * then[0], -theta * then[1]) for now, then in zip(lines, before, strict=True)
    ]
    return _shifted(difference, shift, arms, lines, adjusted_by, "delta-cuped")


def _quantiles(
    spec: MetricSpec, control: OrderStatistics | None, treatment: OrderStatistics | None
) -> Estimate:
    """Compare quantiles by the confidence region of both arms' order statistics."""
    n = control.n if control else 0, treatment.n if treatment else 0
    test = "order-statistics"
    quantile = spec.quantile or 0.5
    if control is None or treatment is None or min(n) < 2:
        reason = f"each arm needs at least 2 units ({n[0]} and {n[1]})"
        known = [o.value if o and o.n else 0.0 for o in (control, treatment)]
        return Estimate(Difference(State.NOT_ENOUGH_DATA, reason, test, *known), sum(n), reason)
    values = control.value, treatment.value
    too_few = quantile_wait_reason(min(n), quantile)
    wait_reason = sequential_wait_reason(*n) or too_few
    if too_few is not None:
        difference = Difference(State.NOT_ENOUGH_DATA, too_few, test, *values)
        return Estimate(difference, sum(n), wait_reason)
    region = QuantileRegion(control, treatment, quantile)
    difference = Difference(State.OK, "", test, *values, *region.noise(), region=region)
    return Estimate(difference, sum(n), wait_reason)


def _inside_strata(
    spec: MetricSpec, control: ArmData, treatment: ArmData, names: tuple[str, str]
) -> Estimate:
    """Compare within each stratum; if only one is comparable, compare as without strata."""
    compared = strata.strata_of(control, treatment)
    is_phased = strata.has_several_phases(control, treatment)
    pairs = compared.pairs
    if len(pairs) > 1:
        estimated = _compare_pairs(spec, compared, names)
    elif not is_phased:
        return compare(spec, control.comoments, treatment.comoments, names)
    elif pairs:
        estimated = compare(spec, pairs[0].control, pairs[0].treatment, names)
    else:
        return _without_common_phase(spec, control, treatment, compared)
    if len(compared.phases) < 2 and not compared.left_out:
        return estimated
    values = strata.values_of(spec, pairs)
    phase_summary = strata.PhaseSummary(len(compared.phases), compared.left_out, *values)
    return replace(estimated, phase_summary=phase_summary)


def _compare_pairs(spec: MetricSpec, compared: strata.Strata, names: tuple[str, str]) -> Estimate:
    pairs, whole = compared.pairs, compared.whole
    units = whole.control.n, whole.treatment.n
    if spec.kind == "proportion" and not spec.has_covariate:
        rates = strata_rates.Rates.of(pairs)
        wait_reason = sequential_wait_reason(
            *units, (_events(whole.control), _events(whole.treatment))
        )
        wait_reason = wait_reason or strata_rates.few_expected_events_reason(rates)
        return Estimate(strata_rates.compare_rates(rates), whole.n, wait_reason)
    weights = strata.weights_of(pairs)
    means = strata.compare_means(spec, pairs, weights)
    difference, skewness = strata.adjust_for_skewness(spec, means, pairs, weights, names)
    return Estimate(difference, whole.n, sequential_wait_reason(*units), means.reduction, skewness)


def _without_common_phase(
    spec: MetricSpec, control: ArmData, treatment: ArmData, compared: strata.Strata
) -> Estimate:
    reason = f"each arm needs at least {strata.UNITS_MIN} units of the same phase"
    values = [value_of(spec, arm) or 0.0 for arm in (control, treatment)]
    unavailable = Difference(State.NOT_ENOUGH_DATA, reason, "", *values)
    return Estimate(
        unavailable, 0, reason, phase_summary=strata.PhaseSummary(0, compared.left_out, *values)
    )


def _rare_over_phases(
    control: ArmData, treatment: ArmData
) -> tuple[EventCounts, EventCounts] | strata_rates.Rates | None:
    compared = strata.strata_of(control, treatment)
    if not compared.phases:
        return None
    whole = compared.whole
    a, b = (EventCounts(arm.n, _events(arm)) for arm in (whole.control, whole.treatment))
    rates = strata_rates.Rates.of(compared.by_phase)
    is_rare = few_events_reason(
        a.n, b.n, (a.events, b.events)
    ) or strata_rates.few_expected_events_reason(rates)
    if is_rare is None:
        return None
    return rates if len(compared.phases) > 1 else (a, b)
