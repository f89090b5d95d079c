"""Compares two arms within strata: phases with different shares of the units, and levels.

If units of several phases are pooled, a drift over time shows as a difference: the arm whose share
grew has more of the later units (Simpson's paradox). So units are compared within their own phase,
and the differences of the strata are averaged with weights that depend on the numbers of units
only, wₛ = n1·n0/(n1 + n0) (Cochran 1954). With equal variances no other weights that ignore the
outcomes give an average with less variance, and a phase with few units in one arm has little
weight. Levels of one phase are averaged in the same way (post-stratification).

A stratum with fewer than two units in an arm has no difference and no variance. Its units are left
out and counted until there are enough; they are never pooled with another phase.
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
    unreadable_reason,
    with_skewness,
)

Floats = NDArray[np.float64]

UNITS_MIN = 2
# Levels of a phase in which the smaller arm expects fewer units are pooled. The rule uses the size
# of the level, not the observed split between the arms: a rule by the observed split would bias the
# pooled rest towards levels with few units of one arm.
LEVEL_UNITS_MIN = 5.0
# The minimum distance of a denominator's mean from 0, in standard errors, for the delta method.
DENOMINATOR_Z_MIN = 5.0


@dataclass(frozen=True)
class Pair:
    """The units of both arms in one stratum."""

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
    """The comparable pairs of each phase, by level. `left_out` units are in none of them."""

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
        """The units of each phase, with its levels pooled."""
        return [reduce(Pair.merge, pairs) for pairs in self.phases.values()]


@dataclass(frozen=True)
class PhaseSummary:
    """The basis of an estimate over several phases.

    `phases` is their number. `left_out` units belong to a phase or level with too few units of an
    arm. `control` and `treatment` are the metric in each arm, averaged over the strata with the
    same weights. Without a covariate their difference is the estimate.
    """

    phases: int
    left_out: int
    control: float
    treatment: float


def phases_of(control: ArmData, treatment: ArmData) -> set[int]:
    """Return the indices of the phases in which an arm has units; empty without strata."""
    return {at.phase for arm in (control, treatment) for at in arm.strata}


def has_several_phases(control: ArmData, treatment: ArmData) -> bool:
    """Return whether the arms have units of more than one phase."""
    return len(phases_of(control, treatment)) > 1


def level_share(control: ArmData, treatment: ArmData) -> float:
    """Return the share of the level for a sequential reading of the last phase alone.

    Such a reading restarts with each phase, and each restart may give a false verdict. So each
    phase gets half the level of the phase before, and all together spend less than twice the level.
    """
    return 0.5 ** max(0, len(phases_of(control, treatment)) - 1)


def strata_of(control: ArmData, treatment: ArmData) -> Strata:
    """Return the comparable pairs of two arms by phase; a phase without any is left out."""
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
    """Return the levels of a phase, with those that are too small pooled into one."""
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
    """The weighted means Σ wₛ·meanₛ of one arm.

    `covariances` has wₛ²·Sₛ/nₛ of each stratum, `freedom` its degrees of freedom.
    """

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
    """A stratified difference of means or ratios.

    `reduction` is the share of the variance that a covariate removed. `lines` are the weights of
    each arm's values in the comparison, control's first.
    """

    difference: Difference
    reduction: float | None = None
    lines: tuple[Floats, ...] = ()


def compare_means(spec: MetricSpec, pairs: Sequence[Pair], weights: Floats) -> Means:
    """Return Σ wₛ·dₛ of means or ratios.

    A ratio is that of the weighted means, with the same weights in both arms, by the delta method
    on the covariances within the strata (the combined ratio estimator: Cochran 1977, section 6.11).
    So a stratum with a denominator near 0 does not dominate. θ of a covariate is common to all
    strata, Σ Cov(y, x)/Σ Var(x). Degrees of freedom by Satterthwaite (1946) over all strata.
    """
    arms = [
        Weighted.of([pair.control for pair in pairs], weights),
        Weighted.of([pair.treatment for pair in pairs], weights),
    ]
    is_ratio = spec.kind == "ratio"
    test = "stratified-delta" if is_ratio else "stratified-t"
    values = [_value(arm, 0, is_ratio) for arm in arms]
    if is_ratio and (reason := next(filter(None, map(_invalid_ratio_reason, arms)), None)):
        return Means(Difference(State.NOT_ENOUGH_DATA, reason, test, *values))
    now = [_line(arm, 0, is_ratio) for arm in arms]
    width = len(now[0])
    lines = tuple(np.append(line, np.zeros(len(arms[0].means) - width)) for line in now)
    plain = Means(_difference(arms, lines, values, test), None, lines)
    if not spec.has_covariate or plain.difference.state is not State.OK:
        return plain
    if is_ratio and min(arm.means[3] for arm in arms) <= 0.0:
        return replace(plain, reduction=0.0)
    before = [_line(arm, width, is_ratio) for arm in arms]
    theta = _theta(arms, now, before)
    past = [_value(arm, width, is_ratio) for arm in arms]
    lines = tuple(np.append(y, -theta * x) for y, x in zip(now, before, strict=True))
    values[1] -= theta * (past[1] - past[0])
    difference = _difference(arms, lines, values, f"{test}-cuped")
    if difference.state is not State.OK:
        return replace(plain, reduction=0.0)
    return Means(
        difference, 1.0 - (difference.standard_error / plain.difference.standard_error) ** 2, lines
    )


def adjust_for_skewness(
    spec: MetricSpec,
    means: Means,
    pairs: Sequence[Pair],
    weights: Floats,
    names: tuple[str, str],
) -> tuple[Difference, float | None]:
    """Return the corrected difference, and the skewness of units' values (None if unknown).

    The correction is that of one stratum (`stats.skewness`), with the sums over the strata. If the
    values are too rare or skewed, the difference has no variance and a reason. The size of an arm
    is its effective sample size 1/Σ wₛ²/nₛ.
    """
    difference = means.difference
    if difference.state is not State.OK:
        return difference, None
    whole = reduce(Pair.merge, pairs)
    arms = whole.control, whole.treatment
    common = _common(spec, pairs, weights, means.lines[0])
    spread = _spread(pairs, weights, means.lines, common)
    reason = unreadable_reason(
        spread, arms, names, is_capped=spec.is_capped
    ) or _rare_values_reason(pairs, names)
    skewness = None if spread.third is None else spread.skewness
    if reason is None:
        return with_skewness(difference, spread, _effective(pairs, weights)), skewness
    shown = difference.control_mean, difference.treatment_mean
    return Difference(State.NOT_ENOUGH_DATA, reason, difference.test, *shown), skewness


def _spread(
    pairs: Sequence[Pair], weights: Floats, lines: Sequence[Floats], common: Floats
) -> Spread:
    line_lists = [line.tolist() for line in lines]
    return combined(
        (float(weight), spread_of((pair.control, pair.treatment), line_lists, common.tolist()))
        for weight, pair in zip(weights, pairs, strict=True)
    )


def _effective(pairs: Sequence[Pair], weights: Floats) -> tuple[int, int]:
    counts = np.array([(pair.control.n, pair.treatment.n) for pair in pairs], dtype=np.float64)
    a, b = 1.0 / (weights**2 @ (1.0 / counts))
    return int(a), int(b)


def _common(spec: MetricSpec, pairs: Sequence[Pair], weights: Floats, line: Floats) -> Floats:
    """Return the weights that pool the values of both arms."""
    if spec.kind != "ratio":
        return line
    merged = [pair.control.merge(pair.treatment) for pair in pairs]
    both = Weighted.of(merged, weights)
    line_of_both = _line(both, 0, True)
    if len(line) == len(line_of_both):
        return line_of_both
    # With a covariate, −θ times the weights of the pre-exposure values follow.
    control = Weighted.of([pair.control for pair in pairs], weights)
    theta = -line[2] * control.means[3]
    return np.append(line_of_both, -theta * _line(both, 2, True))


def _rare_values_reason(pairs: Sequence[Pair], names: tuple[str, str]) -> str | None:
    """Return why an arm expects too few values other than 0 over its strata, or None.

    There is no such limit if most values are not 0.
    """
    extremes = [(pair.control.extremes, pair.treatment.extremes) for pair in pairs]
    nonzero = [a.nonzero + b.nonzero for a, b in extremes if a is not None and b is not None]
    if len(nonzero) < len(pairs) or 2 * sum(nonzero) >= sum(pair.n for pair in pairs):
        return None
    rates = [count / pair.n for count, pair in zip(nonzero, pairs, strict=True)]
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
        reason = "the values of neither arm vary within the strata"
        return Difference(State.NO_VARIANCE, reason, test, *values)
    freedom_inverse = sum(
        float(((each / total) ** 2 / arm.freedom).sum())
        for each, arm in zip(noise, arms, strict=True)
    )
    a, b = (float(each.sum()) for each in noise)
    return Difference(State.OK, "", test, values[0], values[1], a, b, df=1.0 / freedom_inverse)


def _line(arm: Weighted, first: int, is_ratio: bool) -> Floats:
    """Return the derivative of the metric by each mean: 1, or for a ratio 1/D and −M/D²."""
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


def _invalid_ratio_reason(arm: Weighted) -> str | None:
    error = float(np.sqrt(arm.covariances[:, 1, 1].sum()))
    if arm.means[1] <= 0.0 or arm.means[1] < DENOMINATOR_Z_MIN * error:
        return "the denominator is not distinguishable from 0"
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
