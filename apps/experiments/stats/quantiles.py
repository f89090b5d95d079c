"""Quantiles by their order statistics: distribution-free, and no density is ever estimated."""

from __future__ import annotations

import math

from apps.experiments.stats.data import OrderStatistics

# The ranks enclose the quantile with about this many standard errors on each side.
Z = 1.959963984540054
SIDE_MIN = 10


def ranks_of(n: int, quantile: float) -> tuple[int, int, int]:
    """Return the 1-based ranks (low, value, high) of n ≥ 1 values in ascending order.

    The number of values below the quantile is binomial(n, q), so that the values at the ranks
    nq ± z·√(nq(1 − q)) enclose it (David and Nagaraja 2003, section 7.1).
    """
    if n < 1 or not 0.0 < quantile < 1.0:
        raise ValueError("n must be at least 1, and the quantile lie between 0 and 1")
    middle = n * quantile
    reach = Z * math.sqrt(n * quantile * (1.0 - quantile))
    low, high = math.floor(middle - reach), math.ceil(middle + reach) + 1
    return max(1, low), min(n, max(1, math.ceil(middle))), min(n, high)


def standard_error(order: OrderStatistics) -> float:
    """Half the width of the interval, in standard errors (Woodruff 1952)."""
    return (order.high - order.low) / (2.0 * Z)


def silence_of_quantile(smaller_n: int, quantile: float) -> str | None:
    """Why the interval cannot be leant on yet: too few values on one side of the quantile."""
    side = smaller_n * min(quantile, 1.0 - quantile)
    if side < SIDE_MIN:
        return f"each side of the quantile needs {SIDE_MIN} units of each arm ({side:.1f} so far)"
    return None
