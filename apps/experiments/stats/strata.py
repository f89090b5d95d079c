"""Two arms compared inside strata, over phases in which their shares of the units differ.

Counted together, units of several phases make a difference of whatever moved meanwhile: the arm
whose share grew has more of the later units (Simpson's paradox). So units are compared with those
of their own phase, and what each stratum says is averaged with weights of the numbers of units
alone, wₛ = n1·n0/(n1 + n0) (Cochran 1954): no other weights that are blind to the outcomes give an
average that varies less where units vary alike, and a phase with hardly a unit in an arm weighs
hardly anything. With one phase nothing here is needed: see `estimates.estimate`.

A stratum in which an arm has fewer than two units compares nothing and has no spread. Its units are
left out, and counted, until there are enough; they are never put to another phase's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln

from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.comparison import (
    FISHER_SUPPORT_MAX,
    P_MIN,
    SMALL_CELL,
    Difference,
    State,
)
from apps.experiments.stats.data import ArmData, MetricSpec
from apps.experiments.stats.rare_rates import Seen, gain_bounds
from apps.experiments.stats.rate_scores import StratifiedRateRegion
from apps.experiments.stats.sequential import EXPECTED_MIN
from apps.experiments.stats.skewness import Spread, combined, spread_of

Floats = NDArray[np.float64]

UNITS_MIN = 2
# Levels of which the smaller arm of a phase expects fewer units are counted together in it. That
# depends on their size alone, not on how they fell: whoever chose by the latter would leave behind,
# in the rest, the levels with few units of one arm.
LEVEL_UNITS_MIN = 5.0
# A denominator's mean must be so many standard errors from 0 for the delta method to hold.
DENOMINATOR_Z_MIN = 5.0


@dataclass(frozen=True)
class Pair:
    """Both arms' units of one stratum."""

    control: Comoments
    treatment: Comoments

    @property
    def n(self) -> int:
        return self.control.n + self.treatment.n

    @property
    def is_comparable(self) -> bool:
        return min(self.control.n, self.treatment.n) >= UNITS_MIN

    @property
    def weight(self) -> float:
        return self.control.n * (self.treatment.n / self.n)

    def merge(self, other: Pair) -> Pair:
        return Pair(self.control.merge(other.control), self.treatment.merge(other.treatment))


@dataclass(frozen=True)
class Strata:
    """What can be compared: each phase's pairs by level; `left_out` units are in none of them."""

    phases: Mapping[int, tuple[Pair, ...]]
    left_out: int = 0

    @property
    def pairs(self) -> list[Pair]:
        return [pair for phase in self.phases.values() for pair in phase]

    @property
    def whole(self) -> Pair:
        return reduce(Pair.merge, self.pairs)

    @property
    def by_phase(self) -> list[Pair]:
        """Return each phase's units, levels together."""
        return [reduce(Pair.merge, pairs) for pairs in self.phases.values()]


@dataclass(frozen=True)
class OverPhases:
    """What an estimate over several phases is made of, for those who read it.

    `left_out` units are of phases, or of levels of one, that had too few units of an arm. `control`
    and `treatment` are the metric in both arms, averaged over the strata with the same weights:
    their difference is the estimate's, but for a covariate.
    """

    phases: int
    left_out: int
    control: float
    treatment: float


def of_phase(arm: ArmData, phase: int) -> ArmData:
    """Return an arm's units of one phase, divided by level."""
    levels = {stratum: units for stratum, units in arm.strata.items() if stratum.phase == phase}
    empty = Comoments.empty(len(arm.comoments.means))
    return ArmData(reduce(Comoments.merge, levels.values(), empty), strata=levels)


def phases_of(control: ArmData, treatment: ArmData) -> set[int]:
    """Return the phases in which either arm has units, by their number; none without strata."""
    return {at.phase for arm in (control, treatment) for at in arm.strata}


def are_phased(control: ArmData, treatment: ArmData) -> bool:
    """Return whether the arms' units are of more than one phase."""
    return len(phases_of(control, treatment)) > 1


def level_share(control: ArmData, treatment: ArmData) -> float:
    """Return the part of its level for a sequential reading of the last phase alone.

    Such a reading begins anew with each phase, and so would its chance of a false verdict: each
    gets half of the one before, so that all of them together have less than two levels.
    """
    return 0.5 ** max(0, len(phases_of(control, treatment)) - 1)


def strata_of(control: ArmData, treatment: ArmData) -> Strata:
    """Return the pairs of two arms with strata, by phase; a phase without any is left out."""
    width = len(control.comoments.means)
    empty = Comoments.empty(width)
    by_phase: dict[int, dict[str, Pair]] = {}
    for stratum in sorted({*control.strata, *treatment.strata}):
        pair = Pair(control.strata.get(stratum, empty), treatment.strata.get(stratum, empty))
        by_phase.setdefault(stratum.phase, {})[stratum.level] = pair
    phases: dict[int, tuple[Pair, ...]] = {}
    left_out = 0
    for phase, levels in by_phase.items():
        pairs = _coarsened(list(levels.values()))
        kept = tuple(pair for pair in pairs if pair.is_comparable)
        left_out += sum(pair.n for pair in pairs if not pair.is_comparable)
        if kept:
            phases[phase] = kept
    return Strata(phases, left_out)


def _coarsened(levels: Sequence[Pair]) -> list[Pair]:
    """Return a phase's levels, those counted together that are too small for one of their own."""
    whole = reduce(Pair.merge, levels)
    if whole.n == 0:
        return []
    smaller = min(whole.control.n, whole.treatment.n) / whole.n
    small = [pair for pair in levels if pair.n * smaller < LEVEL_UNITS_MIN]
    large = [pair for pair in levels if pair.n * smaller >= LEVEL_UNITS_MIN]
    return [*large, reduce(Pair.merge, small)] if small else large


# --- means and ratios ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Weighted:
    """One arm's means Σ wₛ·meanₛ, with each stratum's wₛ²·Sₛ/nₛ and its degrees of freedom."""

    means: Floats
    covariances: Floats
    freedom: Floats
    products: Floats

    @classmethod
    def of(cls, arms: Sequence[Comoments], weights: Floats) -> Weighted:
        n = np.array([arm.n for arm in arms], dtype=np.float64)
        means = np.array([arm.means for arm in arms])
        products = np.array([_matrix(arm) for arm in arms])
        scale = weights**2 / (n * (n - 1.0))
        covariances = products * scale[:, None, None]
        return cls(weights @ means, covariances, n - 1.0, products.sum(axis=0))

    def noise(self, line: Floats) -> Floats:
        """Return each stratum's share of the variance of Σ lineᵢ·meanᵢ."""
        noise: Floats = np.maximum(0.0, np.einsum("i,sij,j->s", line, self.covariances, line))
        return noise


def _matrix(arm: Comoments) -> list[list[float]]:
    k = len(arm.means)
    return [[arm.product(i, j) for j in range(k)] for i in range(k)]


def shares_of(pairs: Sequence[Pair]) -> Floats:
    """Return each stratum's share of all units: post-stratification's weights."""
    n = np.array([pair.n for pair in pairs], dtype=np.float64)
    shares: Floats = n / n.sum()
    return shares


def weights_of(pairs: Sequence[Pair]) -> Floats:
    """Return Cochran's weights, which sum to 1."""
    weights = np.array([pair.weight for pair in pairs])
    normed: Floats = weights / weights.sum()
    return normed


def compare_means(
    spec: MetricSpec, pairs: Sequence[Pair], weights: Floats
) -> tuple[Difference, float | None, Spread | None]:
    """Return Σ wₛ·dₛ of means or ratios, and the share of the variance that a covariate took away.

    The spread of what was compared comes last, None where nothing was.

    A ratio is that of the weighted means, with the same weights in both arms, by the delta method
    on the covariances inside the strata (the combined ratio estimator: Cochran 1977, section 6.11):
    a stratum in which the denominator is all but 0 does no harm. θ of a covariate is that of all
    strata, Σ Cov(y, x)/Σ Var(x). Degrees of freedom by Satterthwaite (1946) over all strata.
    """
    arms = [
        Weighted.of([pair.control for pair in pairs], weights),
        Weighted.of([pair.treatment for pair in pairs], weights),
    ]
    is_ratio = spec.kind == "ratio"
    test = "stratified-delta" if is_ratio else "stratified-t"
    if is_ratio and (why := next(filter(None, map(_why_no_ratio, arms)), None)):
        values = [_ratio(arm, 0) for arm in arms]
        return Difference(State.NOT_ENOUGH_DATA, why, test, *values), None, None
    width = 2 if is_ratio else 1
    values = [_ratio(arm, 0) if is_ratio else float(arm.means[0]) for arm in arms]
    now = [_line(arm, 0, is_ratio) for arm in arms]
    lines = [np.append(line, np.zeros(len(arms[0].means) - width)) for line in now]
    plain = _difference(arms, lines, values, test)
    common = _common(pairs, arms, is_ratio)
    as_they_are = _spread(pairs, weights, lines, np.append(common, np.zeros(len(lines[0]) - width)))
    if not spec.has_covariate or plain.state is not State.OK:
        return plain, None, as_they_are
    if is_ratio and min(arm.means[3] for arm in arms) <= 0.0:
        return plain, 0.0, as_they_are
    before = [_line(arm, width, is_ratio) for arm in arms]
    theta = _theta(arms, now, before)
    past = [_ratio(arm, 2) if is_ratio else float(arm.means[1]) for arm in arms]
    lines = [np.append(y, -theta * x) for y, x in zip(now, before, strict=True)]
    values[1] -= theta * (past[1] - past[0])
    found = _difference(arms, lines, values, f"{test}-cuped")
    if found.state is not State.OK:
        return plain, 0.0, as_they_are
    common = np.append(common, -theta * _common(pairs, arms, is_ratio, width))
    reduction = 1.0 - (found.standard_error / plain.standard_error) ** 2
    return found, reduction, _spread(pairs, weights, lines, common)


def _spread(
    pairs: Sequence[Pair], weights: Floats, lines: Sequence[Floats], common: Floats
) -> Spread:
    own = [tuple(map(float, line)) for line in lines]
    shared = tuple(map(float, common))
    return combined(
        (float(weight), spread_of((pair.control, pair.treatment), own, shared))
        for weight, pair in zip(weights, pairs, strict=True)
    )


def _common(
    pairs: Sequence[Pair], arms: Sequence[Weighted], is_ratio: bool, first: int = 0
) -> Floats:
    """Return the line of all units: a small arm's own ratio is far off where it has few of them."""
    if not is_ratio:
        return np.ones(1)
    n = [sum(pair.control.n for pair in pairs), sum(pair.treatment.n for pair in pairs)]
    means = (n[0] * arms[0].means + n[1] * arms[1].means) / sum(n)
    top, bottom = means[first], means[first + 1]
    return np.array([1.0 / bottom, -top / bottom**2])


def _difference(
    arms: Sequence[Weighted], lines: Sequence[Floats], values: Sequence[float], test: str
) -> Difference:
    noise = [arm.noise(line) for arm, line in zip(arms, lines, strict=True)]
    total = float(sum(each.sum() for each in noise))
    if total <= 0.0:
        reason = "the values of neither arm vary inside the strata"
        return Difference(State.NO_VARIANCE, reason, test, *values)
    spent = sum(
        float(((each / total) ** 2 / arm.freedom).sum())
        for each, arm in zip(noise, arms, strict=True)
    )
    a, b = (float(each.sum()) for each in noise)
    return Difference(State.OK, "", test, values[0], values[1], a, b, df=1.0 / spent)


def _line(arm: Weighted, first: int, is_ratio: bool) -> Floats:
    """Return what the metric changes by with each mean: 1, or of a ratio 1/D and −M/D²."""
    if not is_ratio:
        return np.ones(1)
    top, bottom = arm.means[first], arm.means[first + 1]
    return np.array([1.0 / bottom, -top / bottom**2])


def _theta(arms: Sequence[Weighted], now: Sequence[Floats], before: Sequence[Floats]) -> float:
    covariance = variance = 0.0
    for arm, y, x in zip(arms, now, before, strict=True):
        width = len(y)
        covariance += float(y @ arm.products[:width, width:] @ x)
        variance += float(x @ arm.products[width:, width:] @ x)
    return covariance / variance if variance > 0.0 else 0.0


def _ratio(arm: Weighted, first: int) -> float:
    top, bottom = float(arm.means[first]), float(arm.means[first + 1])
    return top / bottom if bottom != 0.0 else 0.0


def _why_no_ratio(arm: Weighted) -> str | None:
    error = float(np.sqrt(arm.covariances[:, 1, 1].sum()))
    if arm.means[1] <= 0.0 or arm.means[1] < DENOMINATOR_Z_MIN * error:
        return "the denominator cannot be told from 0"
    return None


def values_of(spec: MetricSpec, pairs: Sequence[Pair]) -> tuple[float, float]:
    """Return the metric in both arms, averaged over the strata with the same weights."""
    weights = weights_of(pairs)
    arms = ([pair.control for pair in pairs], [pair.treatment for pair in pairs])
    means = [weights @ np.array([each.means for each in arm]) for arm in arms]
    if spec.kind != "ratio":
        return float(means[0][0]), float(means[1][0])
    a, b = (float(top / bottom) if bottom else 0.0 for top, bottom, *_ in means)
    return a, b


# --- rates ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rates:
    """Units and events of both arms by stratum, as floats of one length."""

    control_n: Floats
    control_events: Floats
    n: Floats
    events: Floats

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Rates:
        control, treatment = [p.control for p in pairs], [p.treatment for p in pairs]
        parts = (_n(control), _events(control), _n(treatment), _events(treatment))
        return cls(*(np.array(part, dtype=np.float64) for part in parts))

    @property
    def total(self) -> Floats:
        return self.control_n + self.n

    @property
    def pooled(self) -> Floats:
        """Return each stratum's rate in both arms together."""
        return (self.control_events + self.events) / self.total


def _n(arms: Sequence[Comoments]) -> list[int]:
    return [arm.n for arm in arms]


def _events(arms: Sequence[Comoments]) -> list[int]:
    return [round(arm.means[0] * arm.n) for arm in arms]


def compare_rates(rates: Rates) -> Difference:
    """Return the stratified difference of rates with its variance where the arms are alike.

    With Cochran's weights wₛ·dₛ is events less those expected, and the test is that of Mantel and
    Haenszel (1959), with the variance n1·n0·p(1 − p)/(N − 1) of each stratum. Where an arm has
    fewer than ten events or non-events in all, the exact conditional test decides. Intervals, and so
    margins, hold each difference against the data by its own score test (`rate_scores`).
    """
    weight = rates.control_n * rates.n / rates.total
    weights = weight / weight.sum()
    a, b = rates.control_events / rates.control_n, rates.events / rates.n
    means = float(weights @ a), float(weights @ b)
    pooled = rates.pooled
    spread = weights**2 * pooled * (1.0 - pooled) * rates.total / (rates.total - 1.0)
    noise = float((spread / rates.control_n).sum()), float((spread / rates.n).sum())
    if sum(noise) <= 0.0:
        reason = "in each phase every unit has the event, or none has"
        return Difference(State.NO_VARIANCE, reason, "mantel-haenszel", *means)
    events, control_events = rates.events.sum(), rates.control_events.sum()
    others = rates.n.sum() - events, rates.control_n.sum() - control_events
    is_small = min(events, control_events, *others) < SMALL_CELL
    exact = exact_p(rates) if is_small else None
    test = "mantel-haenszel" if exact is None else "stratified-exact"
    region = StratifiedRateRegion(
        rates.control_n, rates.control_events, rates.n, rates.events, weights
    )
    return Difference(State.OK, "", test, *means, control_variance=noise[0],
                      treatment_variance=noise[1], exact_p=exact, region=region)  # fmt: skip


def expected_events(rates: Rates) -> float:
    """Return how many events, or non-events if there are fewer, an arm expects at the least."""
    pooled = rates.pooled
    arms = (rates.control_n, rates.n)
    return min(float((n * p).sum()) for n in arms for p in (pooled, 1.0 - pooled))


def too_few_events(rates: Rates) -> str | None:
    """Return why there are too few for the normal approximation where rates move, or None."""
    expected = expected_events(rates)
    if expected < EXPECTED_MIN:
        return (
            f"an arm expects only {expected:.1f} events or non-events by its phases, "
            f"{EXPECTED_MIN:.0f} are needed"
        )
    return None


def exact_p(rates: Rates) -> float | None:
    """Return the two-sided p of the exact conditional test of no difference in any stratum.

    Given each stratum's units and events, treatment's events are hypergeometric in each, and their
    sum is distributed as the convolution (Cox 1958; Gart 1970). As in Fisher's test, the chance of
    all sums that are no likelier than the one that was counted. None where there are too many.
    """
    chances, least, support = np.ones(1), 0, 0
    for control_n, n, events in zip(
        rates.control_n, rates.n, rates.control_events + rates.events, strict=True
    ):
        low, high = max(0.0, events - control_n), min(n, events)
        support += int(high - low) + 1
        if support > FISHER_SUPPORT_MAX:
            return None
        first, each = _hypergeometric(control_n, n, events, np.arange(low, high + 1.0))
        chances, least = np.convolve(chances, each), least + first
    place = round(float(rates.events.sum())) - least
    counted = chances[place] if 0 <= place < len(chances) else 0.0
    # The tolerance lets sums of equal chance count as equal in spite of rounding.
    p_value = float(chances[chances <= counted * (1.0 + 1e-7)].sum())
    return min(1.0, max(p_value, P_MIN))


def _hypergeometric(control_n: float, n: float, events: float, table: Floats) -> tuple[int, Floats]:
    """Return the chances of these numbers of treatment's events, and the first that has any."""
    logs = _log_choose(n, table) + _log_choose(control_n, events - table)
    logs -= _log_choose(control_n + n, np.array(events))
    chances = np.exp(logs)
    # What is below the range of floats would make the convolution long for nothing.
    known = np.flatnonzero(chances)
    first, last = int(known[0]), int(known[-1])
    return int(table[first]), chances[first : last + 1]


def _log_choose(n: float, k: Floats) -> Floats:
    result: Floats = -np.log1p(n) - betaln(n - k + 1.0, k + 1.0)
    return result


def gain_bounds_of(
    rates: Rates, *, alpha: float, is_increase_better: bool, is_final: bool
) -> tuple[float, float]:
    """Bound how much better treatment's rate is, averaged over the strata, where events are rare.

    The exact bounds of each stratum at its part of `alpha` hold together (Bonferroni), and so does
    their average: wide, but true however rates move.
    """
    weight = rates.control_n * rates.n / rates.total
    weights = weight / weight.sum()
    columns = np.column_stack([rates.control_n, rates.control_events, rates.n, rates.events])
    bounds = [
        gain_bounds(
            Seen(control_n, control_events), Seen(n, events),
            alpha=alpha / len(columns), is_increase_better=is_increase_better, is_final=is_final,
        )
        for control_n, control_events, n, events in columns.astype(int).tolist()
    ]  # fmt: skip
    low, high = weights @ np.array(bounds)
    return float(low), float(high)
