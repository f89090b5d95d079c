"""Non-inferiority tests of guardrail metrics: is an arm not worse than control by a margin?

The test is one-sided against the margin, which is in the metric's unit. A rate has a score test,
with the variance of an arm that is worse by the margin (Farrington and Manning 1990). There is no
correction over guardrails: to ship, all must pass (an intersection-union test: Berger 1982).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from scipy.special import ndtri, stdtrit

from apps.experiments.stats.comparison import Difference, State
from apps.experiments.stats.data import MetricSpec
from apps.experiments.stats.estimates import Estimate
from apps.experiments.stats.rare_rates import EventCounts, gain_bounds
from apps.experiments.stats.rate_scores import RateRegion, StratifiedRateRegion
from apps.experiments.stats.sequential import boundary
from apps.experiments.stats.strata_rates import Rates, gain_bounds_of


@dataclass(frozen=True)
class MarginVerdict:
    """`bound` is the lower bound of the arm's gain over control (negative: its largest loss).

    `deteriorated` is the result of the two-sided test, independent of the margin.
    """

    state: Literal["not-worse", "worse", "undecided"]
    bound: float | None
    margin: float
    deteriorated: bool
    reason: str


def judge_margin(
    spec: MetricSpec,
    estimate: Estimate,
    rare: tuple[EventCounts, EventCounts] | Rates | None,
    *,
    alpha: float,
    planned_units: int,
    is_final: bool,
    is_worse: bool,
    stop_reason: str,
) -> MarginVerdict | None:
    """Return the verdict at one-sided `alpha`; None for a metric without a margin.

    Before the planned end a reading that restarts with each phase has the estimate's share of
    `alpha`. `rare` are the event counts of control and the arm if there are too few for the normal
    approximation; exact bounds decide then. `stop_reason` says why no verdict is allowed.
    `is_worse` is the result of the test of a difference.
    """
    margin = spec.margin
    if margin is None:
        return None
    difference = estimate.difference
    undecided_reason = stop_reason
    if not undecided_reason and not rare:
        undecided_reason = (
            difference.reason if difference.state is not State.OK else estimate.wait_reason or ""
        )
        if is_final and difference.state is State.OK:
            undecided_reason = ""
    if undecided_reason:
        return MarginVerdict("undecided", None, margin, is_worse, undecided_reason)
    if rare:
        low, high = _exact(rare, alpha, spec.is_increase_better, is_final)
    else:
        level = alpha if is_final else alpha * estimate.level_share
        low, high = _gain_limits(spec, estimate, level, planned_units, is_final=is_final)
    bound = low if math.isfinite(low) else None
    if low > -margin:
        return MarginVerdict("not-worse", bound, margin, is_worse, "")
    if high < -margin:
        return MarginVerdict("worse", bound, margin, is_worse, "worse by more than the margin")
    remark = difference.region.remark if difference.region else ""
    reason = remark or "too few units to decide"
    if is_worse:
        reason = "worse than control, but the size of the loss is too uncertain"
    return MarginVerdict("undecided", bound, margin, is_worse, reason)


def _gain_limits(
    spec: MetricSpec, estimate: Estimate, alpha: float, planned_units: int, *, is_final: bool
) -> tuple[float, float]:
    """Return the bounds of the arm's gain, each with the one-sided error `alpha`."""
    difference = estimate.difference
    if not is_final:
        # A two-sided interval at 2α has α on each side.
        low, high = difference.bounds(
            boundary(estimate.n, min(0.999, 2.0 * alpha), planned_units)[0]
        )
    elif isinstance(difference.region, RateRegion | StratifiedRateRegion):
        low, high = difference.region.one_sided_limits(_fixed(difference, alpha))
    else:
        low, high = difference.bounds(_fixed(difference, alpha))
    return (low, high) if spec.is_increase_better else (-high, -low)


def _exact(
    rare: tuple[EventCounts, EventCounts] | Rates,
    alpha: float,
    is_increase_better: bool,
    is_final: bool,
) -> tuple[float, float]:
    better = is_increase_better
    if isinstance(rare, Rates):
        return gain_bounds_of(rare, alpha=alpha, is_increase_better=better, is_final=is_final)
    return gain_bounds(*rare, alpha=alpha, is_increase_better=better, is_final=is_final)


def _fixed(difference: Difference, alpha: float) -> float:
    return -float(ndtri(alpha) if difference.df is None else stdtrit(difference.df, alpha))
