"""Quantiles compared by their order statistics: distribution-free, with ties and gaps.

No density is estimated and no standard error decides. How many of n values lie below a quantile,
and how many do not exceed it, enclose a number that is binomial(n, q) whatever the values' law.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

from apps.experiments.stats.data import OrderStatistics

Floats = NDArray[np.float64]

SIDE_MIN = 10
# The ranks known of an arm, in standard errors of the quantile's rank: dense where intervals end.
DENSE_STEP, DENSE_REACH = 0.03, 4.0
SPARSE_STEP, SPARSE_REACH = 0.25, 8.0
# The confidence of the half-interval that serves as a standard error for display.
Z = 1.959963984540054
# More equal values than this share of the rank's standard error are no longer nearly continuous.
TIES_MAX = 0.25


def _offsets() -> Floats:
    dense = np.arange(0.0, DENSE_REACH, DENSE_STEP)
    sparse = np.arange(DENSE_REACH, SPARSE_REACH + SPARSE_STEP / 2.0, SPARSE_STEP)
    one_side = np.concatenate([dense, sparse])
    return np.concatenate([-one_side[::-1], one_side])


OFFSETS = _offsets()


def value_rank(n: int, quantile: float) -> int:
    """Return the 1-based rank of the sample quantile: the smallest with a share of `quantile`."""
    # 0.1 · 30 is a little more than 3 in floats, and its rank is 3.
    return min(n, max(1, math.ceil(round(n * quantile, 6))))


@lru_cache(maxsize=256)
def ranks_of(n: int, quantile: float) -> tuple[int, ...]:
    """Return the 1-based ranks, ascending, whose values a comparison needs of n ≥ 1 values.

    They are the extremes, the sample quantile, and a grid of ranks nq + z·√(nq(1 − q)): every rank
    of few values, some 300 of many.
    """
    if n < 1 or not 0.0 < quantile < 1.0:
        raise ValueError("n must be at least 1, and the quantile lie between 0 and 1")
    spread = math.sqrt(n * quantile * (1.0 - quantile))
    grid = np.clip(np.rint(n * quantile + OFFSETS * spread), 1, n)
    return tuple(sorted({1, n, value_rank(n, quantile), *(int(rank) for rank in grid)}))


def order_statistics_of(ordered: Floats, quantile: float) -> OrderStatistics:
    """Return the order statistics of an arm's values in ascending order, of which there are some.

    Sources answer the same without holding the values.
    """
    ranks = ranks_of(len(ordered), quantile)
    value = float(ordered[value_rank(len(ordered), quantile) - 1])
    equal = np.searchsorted(ordered, value, "right") - np.searchsorted(ordered, value, "left")
    values = tuple(float(ordered[rank - 1]) for rank in ranks)
    return OrderStatistics(len(ordered), values, value, int(equal))


def silence_of_quantile(smaller_n: int, quantile: float) -> str | None:
    """Why the interval cannot be leant on yet: too few values on one side of the quantile."""
    side = smaller_n * min(quantile, 1.0 - quantile)
    if side < SIDE_MIN:
        return f"each side of the quantile needs {SIDE_MIN} units of each arm ({side:.1f} so far)"
    return None


def deviance(count: Floats, n: int, quantile: float) -> Floats:
    """Return 2·n·KL(count/n ‖ q), a likelihood ratio: about the square of a standard normal.

    `count` of n values lie below a point, of which a share q would if it were the quantile.
    """
    rest = n - count
    terms = xlogy(count, count / (n * quantile)) + xlogy(rest, rest / (n * (1.0 - quantile)))
    return np.maximum(0.0, 2.0 * np.asarray(terms, dtype=np.float64))


@dataclass(frozen=True)
class Profile:
    """How badly each value of an arm fits as its quantile, in squared standard errors.

    `low` descend and `high` ascend from the sample quantile, to an infinity each; the deviances
    that stand beside them ascend from 0. A value is as bad as the best count that it may have.
    """

    low: Floats
    low_deviances: Floats
    high: Floats
    high_deviances: Floats


def profile_of(order: OrderStatistics, quantile: float) -> Profile:
    """Return an arm's profile.

    A value at the ranks i to j of those known has between r(i − 1) values below it and r(j + 1) − 1
    that do not exceed it; counts in between are those of points within a tie. So a tie is as good
    as its best part, and what lies between two known values is as good as the better of both.
    """
    n = order.n
    values, first = np.unique(np.array(order.values, dtype=np.float64), return_index=True)
    ranks = np.array(ranks_of(n, quantile), dtype=np.float64)
    last = np.append(first[1:], len(ranks)) - 1
    below = np.where(first > 0, ranks[np.maximum(first - 1, 0)], 0.0)
    above = np.where(last < len(ranks) - 1, ranks[np.minimum(last + 1, len(ranks) - 1)] - 1, n)
    middle = n * quantile
    at = int(np.searchsorted(values, order.value))
    down, up = np.arange(at, -1, -1), np.arange(at, len(values))
    zero, whole = np.zeros(1), np.full(1, float(n))
    low_counts = np.concatenate([np.minimum(above[down], middle), zero])
    high_counts = np.concatenate([np.maximum(below[up], middle), whole])
    return Profile(
        np.append(values[down], -np.inf),
        deviance(low_counts, n, quantile),
        np.append(values[up], np.inf),
        deviance(high_counts, n, quantile),
    )


@dataclass(frozen=True)
class QuantileRegion:
    """The pairs of quantiles that fit both arms' values, and what their differences are.

    A pair (θ_A, θ_B) is in the region of critical value c where the deviances of both sum to c² at
    most; the interval is the range of θ_B − θ_A over it. Where densities are smooth this is the
    empirical likelihood of a difference of quantiles (Owen 1988; Zhou and Jing 2003), whose least
    deviance along a true difference is that of one squared standard normal, and the interval is as
    wide as that of the difference's standard error. Where values tie, or leave a gap, it is wider:
    a uniform rank for each unit inside its tie makes the values continuous, and only raises the
    deviances. Two arms alike are so called different no oftener than by continuous values.
    """

    control: OrderStatistics
    treatment: OrderStatistics
    quantile: float

    @cached_property
    def _profiles(self) -> tuple[Profile, Profile]:
        return profile_of(self.control, self.quantile), profile_of(self.treatment, self.quantile)

    @cached_property
    def score(self) -> float:
        """The least critical value whose interval has 0: a number of standard errors."""
        a, b = self._profiles
        if self.treatment.value > self.control.value:
            return math.sqrt(_least(a, b))
        if self.treatment.value < self.control.value:
            return -math.sqrt(_least(b, a))
        return 0.0

    def limits(self, critical: float) -> tuple[float, float]:
        """Return the ends of the interval: differences of two known values, or infinite."""
        a, b = self._profiles
        high = _reach(a.low, a.low_deviances, b.high, b.high_deviances, critical)
        low = -_reach(b.low, b.low_deviances, a.high, a.high_deviances, critical)
        return low, high

    def uplift_limits(self, critical: float) -> tuple[float, float] | None:
        """Return the range of (θ_B − θ_A)/|θ_A| over the region; None where θ_A may be 0."""
        a, b = self._profiles
        allowed = critical * critical
        bounds = []
        for values, deviances in ((a.low, a.low_deviances), (a.high, a.high_deviances)):
            rest = allowed - deviances[deviances <= allowed]
            tops = b.high[np.searchsorted(b.high_deviances, rest, "right") - 1]
            bottoms = b.low[np.searchsorted(b.low_deviances, rest, "right") - 1]
            bounds.append((values[deviances <= allowed], bottoms, tops))
        base, bottoms, tops = (np.concatenate(part) for part in zip(*bounds, strict=True))
        if not np.isfinite(base).all() or base.min() <= 0.0 <= base.max():
            return None
        low, high = (((ends - base) / np.abs(base)) for ends in (bottoms, tops))
        return float(low.min()), float(high.max())

    def why_unbounded(self, critical: float) -> str:
        """Say how many units an end of the interval takes."""
        rarer = min(self.quantile, 1.0 - self.quantile)
        needed = critical * critical / (-2.0 * math.log1p(-rarer)) * rarer
        side = min(self.control.n, self.treatment.n) * rarer
        return (
            f"each side of the quantile needs {math.ceil(needed)} units of each arm at this look "
            f"({side:.1f} so far)"
        )

    @property
    def remark(self) -> str:
        """Say which share of the values equals its arm's quantile, where that is many of them."""
        arms = self.control, self.treatment
        if all(_is_nearly_continuous(arm, self.quantile) for arm in arms):
            return ""
        share = sum(arm.equal for arm in arms) / sum(arm.n for arm in arms)
        which = "the" if self.control.value == self.treatment.value else "their arm's"
        return f"{_percent(share)} of the values equal {which} quantile"

    def noise(self) -> tuple[float, float]:
        """Return a variance of each arm's quantile for display, (0, 0) where values tie.

        It is the longer half of the 95 % interval in standard errors (after Woodruff 1952), which
        stands for a deviation where values are nearly continuous, and decides nothing.
        """
        arms = self.control, self.treatment
        if not all(_is_nearly_continuous(arm, self.quantile) for arm in arms):
            return 0.0, 0.0
        halves = [_longer_half(profile) for profile in self._profiles]
        if not all(0.0 < half < math.inf for half in halves):
            return 0.0, 0.0
        return (halves[0] / Z) ** 2, (halves[1] / Z) ** 2


def _is_nearly_continuous(order: OrderStatistics, quantile: float) -> bool:
    spread = math.sqrt(order.n * quantile * (1.0 - quantile))
    return order.equal <= max(1.0, TIES_MAX * spread)


def _longer_half(profile: Profile) -> float:
    low = profile.low[np.searchsorted(profile.low_deviances, Z * Z, "right") - 1]
    high = profile.high[np.searchsorted(profile.high_deviances, Z * Z, "right") - 1]
    return float(max(high - profile.high[0], profile.low[0] - low))


def _least(lower: Profile, upper: Profile) -> float:
    """Return the least deviance of two quantiles that have met: `upper`'s estimate is the larger.

    The quantile of `lower` is at each of its values in turn, and that of `upper` not above it.
    """
    ascending = upper.low[::-1]
    places = np.searchsorted(ascending, lower.high, "right") - 1
    return float((lower.high_deviances + upper.low_deviances[::-1][places]).min())


def _reach(
    low: Floats, low_deviances: Floats, high: Floats, high_deviances: Floats, critical: float
) -> float:
    """Return the largest high − low whose deviances sum to critical² at most."""
    allowed = critical * critical
    fits = low_deviances <= allowed
    places = np.searchsorted(high_deviances, allowed - low_deviances[fits], "right") - 1
    return float((high[places] - low[fits]).max())


def _percent(share: float) -> str:
    """Return a share in per cent; one below 100 % never reads as all."""
    if share >= 1.0:
        return "100 %"
    return f"{min(share * 100.0, 99.0):.2g} %"
