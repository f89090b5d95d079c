"""Compares quantiles by their order statistics: distribution-free, valid with ties and gaps.

No density is estimated, and no standard error decides. For any distribution, the number of n values
below a quantile and the number at or below it enclose a binomial(n, q) number.
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
# The known ranks of an arm, in standard errors of the quantile's rank: dense near interval bounds.
DENSE_STEP, DENSE_REACH = 0.03, 4.0
SPARSE_STEP, SPARSE_REACH = 0.25, 8.0
# The normal quantile of the 95 % half-interval that gives the standard error for display.
Z = 1.959963984540054
# Values are nearly continuous up to this many equal ones, in standard errors of the rank.
TIES_MAX = 0.25


def _offsets() -> Floats:
    dense = np.arange(0.0, DENSE_REACH, DENSE_STEP)
    sparse = np.arange(DENSE_REACH, SPARSE_REACH + SPARSE_STEP / 2.0, SPARSE_STEP)
    one_side = np.concatenate([dense, sparse])
    return np.concatenate([-one_side[::-1], one_side])


OFFSETS = _offsets()


def value_rank(n: int, quantile: float) -> int:
    """Return the 1-based rank of the sample quantile: the smallest with this cumulative share."""
    # In floats 0.1 · 30 is slightly above 3; the rank must be 3.
    return min(n, max(1, math.ceil(round(n * quantile, 6))))


@lru_cache(maxsize=256)
def ranks_of(n: int, quantile: float) -> tuple[int, ...]:
    """Return the ascending 1-based ranks of n ≥ 1 values that a comparison needs.

    They are the extremes, the sample quantile, and a grid of ranks nq + z·√(nq(1 − q)): all ranks
    for small n, about 300 for large n.
    """
    if n < 1 or not 0.0 < quantile < 1.0:
        raise ValueError("n must be at least 1, and the quantile between 0 and 1")
    spread = math.sqrt(n * quantile * (1.0 - quantile))
    grid = np.clip(np.rint(n * quantile + OFFSETS * spread), 1, n)
    return tuple(sorted({1, n, value_rank(n, quantile), *(int(rank) for rank in grid)}))


def order_statistics_of(ordered: Floats, quantile: float) -> OrderStatistics:
    """Return the order statistics of an arm's sorted values, of which there must be at least one.

    Sources return the same without holding the values in memory.
    """
    ranks = ranks_of(len(ordered), quantile)
    value = float(ordered[value_rank(len(ordered), quantile) - 1])
    equal = np.searchsorted(ordered, value, "right") - np.searchsorted(ordered, value, "left")
    values = tuple(float(ordered[rank - 1]) for rank in ranks)
    return OrderStatistics(len(ordered), values, value, int(equal))


def quantile_wait_reason(smaller_n: int, quantile: float) -> str | None:
    """Return why there are too few values on one side of the quantile for an interval, or None."""
    side = smaller_n * min(quantile, 1.0 - quantile)
    if side < SIDE_MIN:
        return f"each side of the quantile needs {SIDE_MIN} units of each arm ({side:.1f} so far)"
    return None


def deviance(count: Floats, n: int, quantile: float) -> Floats:
    """Return 2·n·KL(count/n ‖ q), a likelihood-ratio statistic: about a squared standard normal.

    `count` of n values lie below a point; the expected share is q if the point is the quantile.
    """
    rest = n - count
    terms = xlogy(count, count / (n * quantile)) + xlogy(rest, rest / (n * (1.0 - quantile)))
    return np.maximum(0.0, 2.0 * np.asarray(terms, dtype=np.float64))


@dataclass(frozen=True)
class Profile:
    """The deviance of each value of an arm as its quantile, in squared standard errors.

    `low` descends and `high` ascends from the sample quantile, each to an infinity. Their deviances
    ascend from 0. A value has the smallest deviance of its possible counts.
    """

    low: Floats
    low_deviances: Floats
    high: Floats
    high_deviances: Floats


def profile_of(order: OrderStatistics, quantile: float) -> Profile:
    """Return an arm's profile.

    A value at the known ranks i to j has at least r(i − 1) values below it, and at most
    r(j + 1) − 1 values do not exceed it; counts in between are those of points within a tie. So a
    tie has its smallest deviance, and a point between two known values the smaller of the two.
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
    """The confidence region of both arms' quantiles, and the interval of their difference.

    A pair (θ_A, θ_B) is in the region of critical value c if the deviances of both sum to at most
    c². The interval is the range of θ_B − θ_A over the region. For smooth densities this is the
    empirical likelihood of a difference of quantiles (Owen 1988; Zhou and Jing 2003): the smallest
    deviance along the true difference is one squared standard normal, and the interval is as wide
    as that of the standard error. With ties or gaps it is wider: a uniform random rank for each
    unit within its tie makes the values continuous, and only raises the deviances. So the error
    rate for two equal arms is at most that for continuous values.
    """

    control: OrderStatistics
    treatment: OrderStatistics
    quantile: float

    @cached_property
    def _profiles(self) -> tuple[Profile, Profile]:
        return profile_of(self.control, self.quantile), profile_of(self.treatment, self.quantile)

    @cached_property
    def score(self) -> float:
        """The smallest critical value whose interval contains 0, in standard errors."""
        a, b = self._profiles
        if self.treatment.value > self.control.value:
            return math.sqrt(_least(a, b))
        if self.treatment.value < self.control.value:
            return -math.sqrt(_least(b, a))
        return 0.0

    def limits(self, critical: float) -> tuple[float, float]:
        """Return the bounds of the interval: differences of two known values, or infinite."""
        a, b = self._profiles
        high = _reach(a.low, a.low_deviances, b.high, b.high_deviances, critical)
        low = -_reach(b.low, b.low_deviances, a.high, a.high_deviances, critical)
        return low, high

    def uplift_limits(self, critical: float) -> tuple[float, float] | None:
        """Return the range of (θ_B − θ_A)/|θ_A| over the region; None if θ_A may be 0."""
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

    def unbounded_reason(self, critical: float) -> str:
        """Return the number of units that finite bounds need at this look."""
        rarer = min(self.quantile, 1.0 - self.quantile)
        needed = critical * critical / (-2.0 * math.log1p(-rarer)) * rarer
        side = min(self.control.n, self.treatment.n) * rarer
        return (
            f"each side of the quantile needs {math.ceil(needed)} units of each arm at this look "
            f"({side:.1f} so far)"
        )

    @property
    def remark(self) -> str:
        """The share of values that equal their arm's quantile; an empty string if it is small."""
        arms = self.control, self.treatment
        if all(_is_nearly_continuous(arm, self.quantile) for arm in arms):
            return ""
        share = sum(arm.equal for arm in arms) / sum(arm.n for arm in arms)
        which = "the" if self.control.value == self.treatment.value else "their arm's"
        return f"{_percent(share)} of the values equal {which} quantile"

    def noise(self) -> tuple[float, float]:
        """Return the variance of each arm's quantile for display, (0, 0) if values tie.

        The standard error is the longer half of the 95 % interval over its normal quantile (after
        Woodruff 1952), for nearly continuous values. It does not affect any decision.
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
    """Return the smallest deviance of two equal quantiles; `upper` has the larger estimate.

    The quantile of `lower` takes each of its values, and that of `upper` is not above it.
    """
    ascending = upper.low[::-1]
    places = np.searchsorted(ascending, lower.high, "right") - 1
    return float((lower.high_deviances + upper.low_deviances[::-1][places]).min())


def _reach(
    low: Floats, low_deviances: Floats, high: Floats, high_deviances: Floats, critical: float
) -> float:
    """Return the largest high − low whose deviances sum to at most critical²."""
    allowed = critical * critical
    fits = low_deviances <= allowed
    places = np.searchsorted(high_deviances, allowed - low_deviances[fits], "right") - 1
    return float((high[places] - low[fits]).max())


def _percent(share: float) -> str:
    """Format a share in per cent; a share below 1 never shows as 100 %."""
    if share >= 1.0:
        return "100 %"
    return f"{min(share * 100.0, 99.0):.2g} %"
