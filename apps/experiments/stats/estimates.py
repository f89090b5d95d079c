"""One arm against control for each kind of metric: from co-moments to a difference and its noise.

The uplift is always relative to control's unadjusted mean. Where a covariate is used, the means are
control's own and control's plus the adjusted difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from apps.experiments.stats import strata, strata_rates
from apps.experiments.stats.checks import why_invalid
from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.comparison import (
    Difference,
    State,
    compare_means,
    compare_rates,
    welch,
)
from apps.experiments.stats.data import ArmData, MetricData, MetricSpec, OrderStatistics
from apps.experiments.stats.quantiles import QuantileRegion, silence_of_quantile
from apps.experiments.stats.rare_rates import Seen
from apps.experiments.stats.sequential import few_events, silence
from apps.experiments.stats.skewness import read_or_not, spread_of

# A denominator's mean must be so many standard errors from 0 for the delta method to hold.
DENOMINATOR_Z_MIN = 5.0
# What reasons call the arms where nothing else is known of them.
NAMES = ("control", "treatment")

# The weights of each arm's values in what is compared, control's first.
Lines = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Estimate:
    """`silent` says why no sequential reading can be made yet; `variance_reduction` is the share of
    the difference's variance that the covariate took away, None without one; `skewness` that of the
    units' values as they are compared, None where it is not known. `n` are the units that were
    compared. `over` is of an estimate that several phases went into. `level_share` is the part of
    its level that a sequential reading may use, as earlier phases have used the rest.
    """

    found: Difference
    n: int
    silent: str | None
    variance_reduction: float | None = None
    skewness: float | None = None
    over: strata.OverPhases | None = None
    level_share: float = 1.0


def estimate(
    spec: MetricSpec, control: ArmData, treatment: ArmData, names: tuple[str, str] = NAMES
) -> Estimate:
    """Compare two arms by the method of the metric's kind, inside their strata.

    Units are compared with those of their own phase and level: see `stats.strata`. Quantiles are
    those of the last phase. Reasons call the arms by `names`.
    """
    if spec.kind == "quantile":
        made = _quantiles(spec, control.order, treatment.order)
        return replace(made, level_share=strata.level_share(control, treatment))
    if strata.are_phased(control, treatment) or (control.strata and treatment.strata):
        return _inside_strata(spec, control, treatment, names)
    return compare(spec, control.comoments, treatment.comoments, names)


def of_arms(metric: MetricData, control: str, treatment: str) -> Estimate:
    """Compare two arms of a metric by name; one that is missing has no units."""
    missing = ArmData(Comoments.empty(metric.spec.width))
    arms = [metric.arms.get(name, missing) for name in (control, treatment)]
    for name, arm in zip((control, treatment), arms, strict=True):
        if (why := why_invalid(metric.spec, arm)) is not None:
            nothing = Difference(State.INVALID_DATA, f"{name}: {why}", "", 0.0, 0.0)
            return Estimate(nothing, 0, why)
    return estimate(metric.spec, arms[0], arms[1], (control, treatment))


def rare_events(
    metric: MetricData, control: str, treatment: str
) -> tuple[Seen, Seen] | strata_rates.Rates | None:
    """Return the counts of a rate with too few events for a normal approximation, else None.

    Over several phases they are those of each phase.
    """
    arms = [metric.arms.get(name) for name in (control, treatment)]
    if metric.spec.kind != "proportion" or metric.spec.has_covariate:
        return None
    if arms[0] and arms[1] and strata.are_phased(arms[0], arms[1]):
        return _rare_over_phases(arms[0], arms[1])
    a, b = (Seen(arm.comoments.n, _events(arm.comoments)) if arm else Seen(0, 0) for arm in arms)
    if min(a.n, b.n) == 0 or few_events(a.n, b.n, (a.events, b.events)) is None:
        return None
    return a, b


def compare(
    spec: MetricSpec, control: Comoments, treatment: Comoments, names: tuple[str, str] = NAMES
) -> Estimate:
    """Compare units of two arms, or those of one level of a dimension."""
    n = control.n + treatment.n
    if spec.kind == "proportion" and not spec.has_covariate:
        events = _events(control), _events(treatment)
        found = compare_rates(control.n, events[0], treatment.n, events[1])
        return Estimate(found, n, silence(control.n, treatment.n, events))
    method = _ratios if spec.kind == "ratio" else _means
    found, reduction, lines = method(spec, control, treatment)
    silent = silence(control.n, treatment.n)
    if found.state is not State.OK:
        return Estimate(found, n, silent, reduction)
    arms = control, treatment
    spread = spread_of(arms, lines, _common(spec, arms, lines))
    found = read_or_not(found, spread, arms, names, is_capped=spec.is_capped)
    skewness = None if spread.third is None else spread.skewness
    return Estimate(found, n, silent, reduction, skewness)


def _common(spec: MetricSpec, arms: Sequence[Comoments], lines: Lines) -> Sequence[float]:
    """Return the line of all units: a small arm's own ratio is far off where it has few of them."""
    if spec.kind != "ratio":
        return lines[0]
    whole = arms[0].merge(arms[1])
    line = _line(whole, 0)
    if len(lines[0]) == len(line):
        return line
    # A line with a covariate goes on with −θ times that of the time before.
    theta = -lines[0][2] * arms[0].means[3]
    then = _line(whole, 2)
    return (*line, -theta * then[0], -theta * then[1])


def _means(
    spec: MetricSpec, control: Comoments, treatment: Comoments
) -> tuple[Difference, float | None, Lines]:
    found = compare_means(control.moments(), treatment.moments())
    if not spec.has_covariate or found.state is not State.OK:
        return found, None, [(1.0,)] * 2
    return _adjusted(found, control, treatment)


def value_of(spec: MetricSpec, arm: ArmData) -> float | None:
    """Return what the metric is in one arm: a rate, a mean, a ratio or a quantile."""
    if spec.kind == "quantile":
        return arm.order.value if arm.order and arm.order.n else None
    if arm.comoments.n == 0:
        return None
    if spec.kind != "ratio":
        return arm.comoments.means[0]
    top, bottom = arm.comoments.means[:2]
    return top / bottom if bottom != 0.0 else None


def _events(of: Comoments) -> int:
    return round(of.means[0] * of.n)


def _linear_variance(of: Comoments, weights: Sequence[float]) -> float:
    """Variance of the mean of Σ wᵢ·valueᵢ."""
    return of.linear_square(weights) / (of.n - 1) / of.n


def _theta(control: Comoments, treatment: Comoments, y: tuple[float, ...]) -> float:
    """CUPED's θ = Cov(y, x)/Var(x), pooled inside the arms (Deng et al. 2013); 0 for constant x.

    `y` are the weights of the outcome's values; those of the covariate's follow and are the same.
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
    found: Difference, control: Comoments, treatment: Comoments
) -> tuple[Difference, float, Lines]:
    """Take θ·(x̄_B − x̄_A) off the difference of means (Deng, Xu, Kohavi and Walker 2013)."""
    theta = _theta(control, treatment, (1.0,))
    shift = theta * (treatment.means[1] - control.means[1])
    before, after = [(1.0,)] * 2, [(1.0, -theta)] * 2
    return _shifted(found, shift, (control, treatment), before, after, "cuped")


def _shifted(
    found: Difference,
    shift: float,
    arms: tuple[Comoments, Comoments],
    plain: Lines,
    adjusted_by: Lines,
    how: str,
) -> tuple[Difference, float, Lines]:
    before = found.standard_error**2
    noise = [_linear_variance(arm, line) for arm, line in zip(arms, adjusted_by, strict=True)]
    if sum(noise) <= 0.0 or before <= 0.0:
        return found, 0.0, plain
    means = found.control_mean, found.treatment_mean - shift
    adjusted = welch(means, (noise[0], noise[1]), (arms[0].n, arms[1].n), how)
    return adjusted, 1.0 - sum(noise) / before, adjusted_by


def _ratios(
    spec: MetricSpec, control: Comoments, treatment: Comoments
) -> tuple[Difference, float | None, Lines]:
    """The delta method: Var(R) = (vM/D² + vD·M²/D⁴ − 2·cov·M/D³)/n (Deng, Knoblich and Lu 2018).

    With a covariate the linearised values (y − R·d)/D of both periods take the place of y and x,
    which is the delta method on all four means.
    """
    arms = control, treatment
    named = "delta"
    for arm in arms:
        if (why := _why_no_ratio(arm)) is not None:
            ratios = [a.means[0] / a.means[1] if a.means[1] else 0.0 for a in arms]
            return Difference(State.NOT_ENOUGH_DATA, why, named, *ratios), None, []
    ratios = [arm.means[0] / arm.means[1] for arm in arms]
    lines = [_line(arm, 0) for arm in arms]
    noise = [_linear_variance(arm, line) for arm, line in zip(arms, lines, strict=True)]
    if sum(noise) == 0.0:
        why = "the ratios of neither arm vary"
        return Difference(State.NO_VARIANCE, why, named, *ratios), None, lines
    n = control.n, treatment.n
    found = welch((ratios[0], ratios[1]), (noise[0], noise[1]), n, named)
    if not spec.has_covariate or any(arm.means[3] <= 0.0 for arm in arms):
        return found, (0.0 if spec.has_covariate else None), lines
    return _adjusted_ratios(found, control, treatment, lines)


def _line(arm: Comoments, first: int) -> tuple[float, float]:
    top, bottom = arm.means[first], arm.means[first + 1]
    return 1.0 / bottom, -top / bottom**2


def _why_no_ratio(arm: Comoments) -> str | None:
    if arm.n < 2:
        return f"each arm needs at least 2 units ({arm.n})"
    error = math.sqrt(arm.product(1, 1) / (arm.n - 1) / arm.n)
    if arm.means[1] <= 0.0 or arm.means[1] < DENOMINATOR_Z_MIN * error:
        return "the denominator cannot be told from 0"
    return None


def _adjusted_ratios(
    found: Difference,
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
    return _shifted(found, shift, arms, lines, adjusted_by, "delta-cuped")


def _quantiles(
    spec: MetricSpec, control: OrderStatistics | None, treatment: OrderStatistics | None
) -> Estimate:
    """The difference of quantiles, judged by the region of those that fit both arms' values."""
    n = control.n if control else 0, treatment.n if treatment else 0
    named = "order-statistics"
    quantile = spec.quantile or 0.5
    if control is None or treatment is None or min(n) < 2:
        reason = f"each arm needs at least 2 units ({n[0]} and {n[1]})"
        known = [o.value if o and o.n else 0.0 for o in (control, treatment)]
        return Estimate(Difference(State.NOT_ENOUGH_DATA, reason, named, *known), sum(n), reason)
    values = control.value, treatment.value
    too_few = silence_of_quantile(min(n), quantile)
    silent = silence(*n) or too_few
    if too_few is not None:
        found = Difference(State.NOT_ENOUGH_DATA, too_few, named, *values)
        return Estimate(found, sum(n), silent)
    region = QuantileRegion(control, treatment, quantile)
    found = Difference(State.OK, "", named, *values, *region.noise(), region=region)
    return Estimate(found, sum(n), silent)


def _inside_strata(
    spec: MetricSpec, control: ArmData, treatment: ArmData, names: tuple[str, str]
) -> Estimate:
    """Compare inside each stratum; where only one can be compared, as if there were no other."""
    compared = strata.strata_of(control, treatment)
    is_phased = strata.are_phased(control, treatment)
    pairs = compared.pairs
    if len(pairs) > 1:
        made = _of_pairs(spec, compared, names)
    elif not is_phased:
        return compare(spec, control.comoments, treatment.comoments, names)
    elif pairs:
        made = compare(spec, pairs[0].control, pairs[0].treatment, names)
    else:
        return _of_no_phase(spec, control, treatment, compared)
    if len(compared.phases) < 2 and not compared.left_out:
        return made
    values = strata.values_of(spec, pairs)
    over = strata.OverPhases(len(compared.phases), compared.left_out, *values)
    return replace(made, over=over)


def _of_pairs(spec: MetricSpec, compared: strata.Strata, names: tuple[str, str]) -> Estimate:
    pairs, whole = compared.pairs, compared.whole
    units = whole.control.n, whole.treatment.n
    if spec.kind == "proportion" and not spec.has_covariate:
        rates = strata_rates.Rates.of(pairs)
        silent = silence(*units, (_events(whole.control), _events(whole.treatment)))
        silent = silent or strata_rates.too_few_events(rates)
        return Estimate(strata_rates.compare_rates(rates), whole.n, silent)
    weights = strata.weights_of(pairs)
    means = strata.compare_means(spec, pairs, weights)
    found, skewness = strata.read_or_not(spec, means, pairs, weights, names)
    return Estimate(found, whole.n, silence(*units), means.reduction, skewness)


def _of_no_phase(
    spec: MetricSpec, control: ArmData, treatment: ArmData, compared: strata.Strata
) -> Estimate:
    reason = f"each arm needs at least {strata.UNITS_MIN} units of the same phase"
    values = [value_of(spec, arm) or 0.0 for arm in (control, treatment)]
    nothing = Difference(State.NOT_ENOUGH_DATA, reason, "", *values)
    return Estimate(nothing, 0, reason, over=strata.OverPhases(0, compared.left_out, *values))


def _rare_over_phases(
    control: ArmData, treatment: ArmData
) -> tuple[Seen, Seen] | strata_rates.Rates | None:
    compared = strata.strata_of(control, treatment)
    if not compared.phases:
        return None
    whole = compared.whole
    a, b = (Seen(arm.n, _events(arm)) for arm in (whole.control, whole.treatment))
    rates = strata_rates.Rates.of(compared.by_phase)
    is_rare = few_events(a.n, b.n, (a.events, b.events)) or strata_rates.too_few_events(rates)
    if is_rare is None:
        return None
    return rates if len(compared.phases) > 1 else (a, b)
