"""Guardrails of an experiment: is an arm shown not to be worse than control by a margin?

One-sided against the margin, which is in the metric's unit; a rate by its score test there, whose
noise is that of an arm worse by the margin (Farrington and Manning 1990). No correction over
guardrails: to ship, all of them must pass (an intersection-union test: Berger 1982).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from scipy.special import ndtri, stdtrit

from apps.experiments.stats.comparison import Difference, State
from apps.experiments.stats.data import MetricSpec
from apps.experiments.stats.estimates import Estimate
from apps.experiments.stats.rare_rates import Seen, gain_bounds
from apps.experiments.stats.rate_scores import RateRegion, StratifiedRateRegion
from apps.experiments.stats.sequential import boundary
from apps.experiments.stats.strata_rates import Rates, gain_bounds_of


@dataclass(frozen=True)
class MarginVerdict:
    """`bound` says how much better the arm is at least (negative: how much worse at most).

    `deteriorated` is the finding of the two-sided test, whatever the margin.
    """

    state: Literal["not-worse", "worse", "undecided"]
    bound: float | None
    margin: float
    deteriorated: bool
    reason: str


def judge_margin(
    spec: MetricSpec,
    made: Estimate,
    rare: tuple[Seen, Seen] | Rates | None,
    *,
    alpha: float,
    planned_units: int,
    is_final: bool,
    is_worse: bool,
    stopped: str,
) -> MarginVerdict | None:
    """Return the verdict at one-sided `alpha`; None for a metric without a margin.

    Before the end a reading that begins anew with each phase has the estimate's share of `alpha`.
    `rare` are control's and the arm's counts of a rate with too few events for `made` to be normal:
    exact bounds judge it then. `stopped` says why no verdict may be read; `is_worse` is what the
    test of a difference found.
    """
    margin = spec.margin
    if margin is None:
        return None
    found = made.found
    silent = stopped
    if not silent and not rare:
        silent = found.reason if found.state is not State.OK else made.silent or ""
        if is_final and found.state is State.OK:
            silent = ""
    if silent:
        return MarginVerdict("undecided", None, margin, is_worse, silent)
    if rare:
        low, high = _exact(rare, alpha, spec.is_increase_better, is_final)
    else:
        level = alpha if is_final else alpha * made.level_share
        low, high = _gain_limits(spec, made, level, planned_units, is_final=is_final)
    bound = low if math.isfinite(low) else None
    if low > -margin:
        return MarginVerdict("not-worse", bound, margin, is_worse, "")
    if high < -margin:
        return MarginVerdict("worse", bound, margin, is_worse, "worse by more than the margin")
    remark = found.region.remark if found.region else ""
    reason = remark or "too few to tell"
    if is_worse:
        reason = "it is worse, by how much is not known well enough"
    return MarginVerdict("undecided", bound, margin, is_worse, reason)


def _gain_limits(
    spec: MetricSpec, made: Estimate, alpha: float, planned_units: int, *, is_final: bool
) -> tuple[float, float]:
    """Bound how much better the arm is, from each side with an error of `alpha`."""
    found = made.found
    if not is_final:
        # A two-sided interval at 2α has α on each side.
        low, high = found.bounds(boundary(made.n, min(0.999, 2.0 * alpha), planned_units)[0])
    elif isinstance(found.region, RateRegion | StratifiedRateRegion):
        low, high = found.region.one_sided_limits(_fixed(found, alpha))
    else:
        low, high = found.bounds(_fixed(found, alpha))
    return (low, high) if spec.is_increase_better else (-high, -low)


def _exact(
    rare: tuple[Seen, Seen] | Rates, alpha: float, is_increase_better: bool, is_final: bool
) -> tuple[float, float]:
    better = is_increase_better
    if isinstance(rare, Rates):
        return gain_bounds_of(rare, alpha=alpha, is_increase_better=better, is_final=is_final)
    return gain_bounds(*rare, alpha=alpha, is_increase_better=better, is_final=is_final)


def _fixed(found: Difference, alpha: float) -> float:
    return -float(ndtri(alpha) if found.df is None else stdtrit(found.df, alpha))
