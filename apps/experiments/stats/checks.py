"""Checks that an arm's statistics are possible for any set of outcomes."""

from __future__ import annotations

import math
from itertools import pairwise

from apps.experiments.stats.data import ArmData, MetricSpec
from apps.experiments.stats.quantiles import ranks_of

# Above these limits a square or a ratio overflows a float.
MEAN_MAX = 1e150
M2_MAX = 1e300


def invalid_reason(spec: MetricSpec, arm: ArmData) -> str | None:
    """Return why these statistics are impossible, or None if they are valid."""
    if spec.kind == "quantile":
        return _invalid_order_reason(arm, spec.quantile or 0.5)
    comoments = arm.comoments
    if comoments.n < 0:
        return f"{comoments.n} units"
    if not all(map(math.isfinite, (*comoments.means, *comoments.products))):
        return "the outcomes are not all finite numbers"
    width = len(comoments.means)
    squares = [comoments.product(i, i) for i in range(width)]
    if any(square < 0.0 for square in squares):
        return "the variance of the outcomes is negative"
    if max(squares) > M2_MAX or max(map(abs, comoments.means)) > MEAN_MAX:
        return "the outcomes are too large to compute with"
    return _invalid_rate_reason(arm) if spec.kind == "proportion" and comoments.n else None


def _invalid_rate_reason(arm: ArmData) -> str | None:
    n, rate = arm.comoments.n, arm.comoments.means[0]
    if not 0.0 <= rate <= 1.0:
        return f"{rate * n:.6g} events of {n} units"
    if abs(rate * n - round(rate * n)) > 1e-3 + 1e-9 * n:
        return "the outcomes of a proportion must be 0 or 1"
    return None


def _invalid_order_reason(arm: ArmData, quantile: float) -> str | None:
    order = arm.order
    if order is None or order.n == 0:
        return None
    if not all(map(math.isfinite, (order.value, *order.values))):
        return "the outcomes are not all finite numbers"
    if any(a > b for a, b in pairwise(order.values)):
        return "the order statistics are not sorted"
    if len(order.values) != len(ranks_of(order.n, quantile)):
        return f"{len(order.values)} order statistics do not match {order.n} units"
    if order.value not in order.values or not 1 <= order.equal <= order.n:
        return "the order statistics do not contain the quantile"
    return None
