"""Two arms compared inside strata: phases in which their shares of the units differ, and levels.

Counted together, units of several phases make a difference of whatever moved meanwhile: the arm
whose share grew has more of the later units (Simpson's paradox). So units are compared with those
of their own phase, and what each stratum says is averaged with weights of the numbers of units
alone, wₛ = n1·n0/(n1 + n0) (Cochran 1954): no other weights that are blind to the outcomes give an
average that varies less where units vary alike, and a phase with hardly a unit in an arm weighs
hardly anything. Levels of one phase are averaged in the same way (post-stratification).

A stratum in which an arm has fewer than two units compares nothing and has no spread. Its units are
left out, and counted, until there are enough; they are never put to another phase's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.comparison import Difference, State
from apps.experiments.stats.data import ArmData, MetricSpec
from apps.experiments.stats.sequential import EXPECTED_MIN
from apps.experiments.stats.skewness import (
    Spread,
    combined,
    spread_of,
    why_unread,
    with_skewness,
)

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


def weights_of(pairs: Sequence[Pair]) -> Floats:
    """Return Cochran's weights, which sum to 1."""
    weights = np.array([pair.weight for pair in pairs])
    normed: Floats = weights / weights.sum()
    return normed


@dataclass(frozen=True)
class Means:
    """What comparing means or ratios gives; `reduction` is the share of the variance that a
    covariate took away, and `lines` are what both arms' values were compared by, control's first.
    """

    found: Difference
    reduction: float | None = None
    lines: tuple[Floats, ...] = ()


def compare_means(spec: MetricSpec, pairs: Sequence[Pair], weights: Floats) -> Means:
    """Return Σ wₛ·dₛ of means or ratios.

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
    values = [_value(arm, 0, is_ratio) for arm in arms]
    if is_ratio and (why := next(filter(None, map(_why_no_ratio, arms)), None)):
        return Means(Difference(State.NOT_ENOUGH_DATA, why, test, *values))
    now = [_line(arm, 0, is_ratio) for arm in arms]
    width = len(now[0])
    lines = tuple(np.append(line, np.zeros(len(arms[0].means) - width)) for line in now)
    plain = Means(_difference(arms, lines, values, test), None, lines)
    if not spec.has_covariate or plain.found.state is not State.OK:
        return plain
    if is_ratio and min(arm.means[3] for arm in arms) <= 0.0:
        return replace(plain, reduction=0.0)
    before = [_line(arm, width, is_ratio) for arm in arms]
    theta = _theta(arms, now, before)
    past = [_value(arm, width, is_ratio) for arm in arms]
    lines = tuple(np.append(y, -theta * x) for y, x in zip(now, before, strict=True))
    values[1] -= theta * (past[1] - past[0])
    found = _difference(arms, lines, values, f"{test}-cuped")
    if found.state is not State.OK:
        return replace(plain, reduction=0.0)
    return Means(found, 1.0 - (found.standard_error / plain.found.standard_error) ** 2, lines)


def read_or_not(
    spec: MetricSpec,
    means: Means,
    pairs: Sequence[Pair],
    weights: Floats,
    names: tuple[str, str],
) -> tuple[Difference, float | None]:
    """Return the difference with its skewness, or why the values are too rare or skewed for it, and
    the skewness of units' values, None where it is not known.

    As of one stratum (`stats.skewness`), with what each stratum adds. Of an arm so many units count
    as would know its weighted mean as well: 1/Σ wₛ²/nₛ.
    """
    found = means.found
    if found.state is not State.OK:
        return found, None
    whole = reduce(Pair.merge, pairs)
    arms = whole.control, whole.treatment
    common = _common(spec, pairs, weights, means.lines[0])
    spread = _spread(pairs, weights, means.lines, common)
    why = why_unread(spread, arms, names, is_capped=spec.is_capped) or _why_rare(pairs, names)
    skewness = None if spread.third is None else spread.skewness
    if why is None:
        return with_skewness(found, spread, _effective(pairs, weights)), skewness
    shown = found.control_mean, found.treatment_mean
    return Difference(State.NOT_ENOUGH_DATA, why, found.test, *shown), skewness


def _spread(
    pairs: Sequence[Pair], weights: Floats, lines: Sequence[Floats], common: Floats
) -> Spread:
    of = [line.tolist() for line in lines]
    return combined(
        (float(weight), spread_of((pair.control, pair.treatment), of, common.tolist()))
        for weight, pair in zip(weights, pairs, strict=True)
    )


def _effective(pairs: Sequence[Pair], weights: Floats) -> tuple[int, int]:
    counts = np.array([(pair.control.n, pair.treatment.n) for pair in pairs], dtype=np.float64)
    a, b = 1.0 / (weights**2 @ (1.0 / counts))
    return int(a), int(b)


def _common(spec: MetricSpec, pairs: Sequence[Pair], weights: Floats, line: Floats) -> Floats:
    """Return the line of both arms together, by which their values may be put together."""
    if spec.kind != "ratio":
        return line
    merged = [pair.control.merge(pair.treatment) for pair in pairs]
    both = Weighted.of(merged, weights)
    found = _line(both, 0, True)
    if len(line) == len(found):
        return found
    # A line with a covariate goes on with −θ times that of the time before.
    control = Weighted.of([pair.control for pair in pairs], weights)
    theta = -line[2] * control.means[3]
    return np.append(found, -theta * _line(both, 2, True))


def _why_rare(pairs: Sequence[Pair], names: tuple[str, str]) -> str | None:
    """Return why an arm expects too few values other than 0 by the strata that it is in, or None.

    Where most values are others than 0 this says nothing.
    """
    ends = [(pair.control.extremes, pair.treatment.extremes) for pair in pairs]
    others = [a.nonzero + b.nonzero for a, b in ends if a is not None and b is not None]
    if len(others) < len(pairs) or 2 * sum(others) >= sum(pair.n for pair in pairs):
        return None
    rates = [count / pair.n for count, pair in zip(others, pairs, strict=True)]
    for name, side in zip(names, ("control", "treatment"), strict=True):
        units = [getattr(pair, side).n for pair in pairs]
        expected = sum(n * rate for n, rate in zip(units, rates, strict=True))
        if expected < EXPECTED_MIN:
            return (
                f"{name} expects only {expected:.1f} units with a value other than 0 by its "
                f"phases, {EXPECTED_MIN:.0f} are needed"
            )
    return None


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


def _value(arm: Weighted, first: int, is_ratio: bool) -> float:
    if not is_ratio:
        return float(arm.means[first])
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
