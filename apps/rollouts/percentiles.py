"""Compares the percentiles of two latency histograms, with bounds, for display only.

The bounds are valid at one look. The e-process, which is valid at every look, decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from scipy.special import bdtr

from contract.histogram import BOUNDS_US, quantile_us, total, upper_bound_us

PERMILLES = (500, 950, 990)
CONFIDENCE = 0.95


@dataclass(frozen=True)
class PercentileDifference:
    """One percentile of both versions in microseconds, canary − control, and its 95 % bounds.

    None where a side has no data, or too little for a bound on that side of the percentile.
    """

    permille: int
    canary_us: float | None
    control_us: float | None
    difference_us: float | None
    low_us: float | None
    high_us: float | None


def percentile_differences(
    canary: Mapping[int, int], control: Mapping[int, int]
) -> tuple[PercentileDifference, ...]:
    """Return p50, p95 and p99 of two histograms and the bounds of their differences.

    Each percentile has the distribution-free interval of its order statistics (David and Nagaraja,
    Order Statistics, 2003, section 7.1), widened to the edges of its buckets. The two, each at
    97.5 %, make a difference's interval of at least 95 % (Bonferroni): canary's lower bound less
    control's upper one, and the reverse.
    """
    return tuple(_difference(canary, control, permille) for permille in PERMILLES)


def _difference(
    canary: Mapping[int, int], control: Mapping[int, int], permille: int
) -> PercentileDifference:
    q = permille / 1000
    at_canary, at_control = quantile_us(canary, q), quantile_us(control, q)
    miss = (1.0 - CONFIDENCE) / 2.0
    low1, high1 = quantile_bounds_us(canary, q, miss=miss)
    low0, high0 = quantile_bounds_us(control, q, miss=miss)
    return PercentileDifference(
        permille,
        at_canary,
        at_control,
        _minus(at_canary, at_control),
        _minus(low1, high0),
        _minus(high1, low0),
    )


def quantile_bounds_us(
    counts: Mapping[int, int], q: float, *, miss: float
) -> tuple[float | None, float | None]:
    """Return bounds that miss the true `q`-quantile with probability `miss`; None is no bound.

    B of n durations lie at or below the quantile, B binomial (n, q). The l-th smallest lies above
    it with the chance P(B < l), the u-th smallest below it with P(B ≥ u): l is the largest and u
    the smallest rank for which those are at most miss / 2.
    """
    n = total(counts)
    if n == 0:
        return None, None
    low = _rank(n, q, lambda at_most: at_most <= miss / 2.0)
    high = _rank(n, q, lambda at_most: at_most < 1.0 - miss / 2.0) + 1
    lower = _bucket_edge(counts, low, upper=False) if low >= 1 else None
    upper = _bucket_edge(counts, high, upper=True) if high <= n else None
    return lower, upper


def _rank(n: int, q: float, is_below: Callable[[float], bool]) -> int:
    """Return the smallest k whose P(B ≤ k) is not below, by bisection; P rises with k."""
    low, high = 0, n
    while low < high:
        middle = (low + high) // 2
        if is_below(bdtr(float(middle), n, q)):
            low = middle + 1
        else:
            high = middle
    return low


def _bucket_edge(counts: Mapping[int, int], rank: int, *, upper: bool) -> float | None:
    """Return an edge of the bucket that holds the duration of that rank; the last has no upper."""
    cumulative, index = 0, 0
    for index in sorted(counts):
        cumulative += counts[index]
        if cumulative >= rank:
            break
    if not upper:
        return BOUNDS_US[index - 1] if index > 0 else 0.0
    edge = upper_bound_us(index)
    return edge if math.isfinite(edge) else None


def _minus(minuend: float | None, subtrahend: float | None) -> float | None:
    return None if minuend is None or subtrahend is None else minuend - subtrahend
