"""Whether an arm's numbers can be anybody's outcomes at all."""

from __future__ import annotations

import math
from itertools import pairwise

from apps.experiments.stats.data import ArmData, MetricSpec
from apps.experiments.stats.quantiles import ranks_of

# Beyond these a square or a ratio leaves the range of floats.
MEAN_MAX = 1e150
M2_MAX = 1e300


def why_invalid(spec: MetricSpec, arm: ArmData) -> str | None:
    """Return why these numbers cannot be true, or None."""
    if spec.kind == "quantile":
        return _why_no_order(arm, spec.quantile or 0.5)
    seen = arm.comoments
    if seen.n < 0:
        return f"{seen.n} units"
    if not all(map(math.isfinite, (*seen.means, *seen.products))):
        return "the outcomes are not all finite numbers"
    width = len(seen.means)
    squares = [seen.product(i, i) for i in range(width)]
    if any(square < 0.0 for square in squares):
        return "the spread of the outcomes is negative"
    if max(squares) > M2_MAX or max(map(abs, seen.means)) > MEAN_MAX:
        return "the outcomes are beyond what can be computed"
    return _why_no_rate(arm) if spec.kind == "proportion" and seen.n else None


def _why_no_rate(arm: ArmData) -> str | None:
    n, rate = arm.comoments.n, arm.comoments.means[0]
    if not 0.0 <= rate <= 1.0:
        return f"{rate * n:.6g} events of {n} units"
    if abs(rate * n - round(rate * n)) > 1e-3 + 1e-9 * n:
        return "the outcomes of a proportion must be 0 or 1"
    return None


def _why_no_order(arm: ArmData, quantile: float) -> str | None:
    order = arm.order
    if order is None or order.n == 0:
        return None
    if not all(map(math.isfinite, (order.value, *order.values))):
        return "the outcomes are not all finite numbers"
    if any(a > b for a, b in pairwise(order.values)):
        return "the order statistics are out of order"
    if len(order.values) != len(ranks_of(order.n, quantile)):
        return f"{len(order.values)} order statistics are not those of {order.n} units"
    if order.value not in order.values or not 1 <= order.equal <= order.n:
        return "the order statistics do not have the quantile"
    return None
