"""Compares the rates of two arms over strata.

It has the Mantel-Haenszel test, an exact conditional test, and bounds for rare events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln

from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.comparison import (
    FISHER_SUPPORT_MAX,
    P_MIN,
    SMALL_CELL,
    Difference,
    State,
)
from apps.experiments.stats.rare_rates import EventCounts, gain_bounds
from apps.experiments.stats.rate_scores import StratifiedRateRegion
from apps.experiments.stats.sequential import EXPECTED_MIN
from apps.experiments.stats.strata import Pair

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rates:
    """Units and events of both arms by stratum, as float arrays of equal length."""

    control_n: Floats
    control_events: Floats
    n: Floats
    events: Floats

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Rates:
        control, treatment = [p.control for p in pairs], [p.treatment for p in pairs]
        parts = (_n(control), _events(control), _n(treatment), _events(treatment))
        return cls(*(np.array(part, dtype=np.float64) for part in parts))

    @property
    def total(self) -> Floats:
        return self.control_n + self.n

    @property
    def pooled(self) -> Floats:
        """The rate of each stratum, pooled over both arms."""
        return (self.control_events + self.events) / self.total


def _n(arms: Sequence[Comoments]) -> list[int]:
    return [arm.n for arm in arms]


def _events(arms: Sequence[Comoments]) -> list[int]:
    return [round(arm.means[0] * arm.n) for arm in arms]


def compare_rates(rates: Rates) -> Difference:
    """Return the stratified difference of rates, with its variance under no difference.

    Its region inverts the score test (`rate_scores`). With Cochran's weights wₛ·dₛ is the observed
    minus the expected events, and the test is that of Mantel and Haenszel (1959), with the variance
    n1·n0·p(1 − p)/(N − 1) of each stratum. If an arm has fewer than ten events or non-events in
    total, the exact conditional test decides.
    """
    weight = rates.control_n * rates.n / rates.total
    weights = weight / weight.sum()
    a, b = rates.control_events / rates.control_n, rates.events / rates.n
    means = float(weights @ a), float(weights @ b)
    pooled = rates.pooled
    spread = weights**2 * pooled * (1.0 - pooled) * rates.total / (rates.total - 1.0)
    noise = float((spread / rates.control_n).sum()), float((spread / rates.n).sum())
    if sum(noise) <= 0.0:
        reason = "within each phase and level all units have the event, or none has it"
        return Difference(State.NO_VARIANCE, reason, "mantel-haenszel", *means)
    events, control_events = rates.events.sum(), rates.control_events.sum()
    others = rates.n.sum() - events, rates.control_n.sum() - control_events
    is_small = min(events, control_events, *others) < SMALL_CELL
    exact = exact_p(rates) if is_small else None
    test = "mantel-haenszel" if exact is None else "stratified-exact"
    counts = rates.control_n, rates.control_events, rates.n, rates.events
    return Difference(
        State.OK,
        "",
        test,
        *means,
        control_variance=noise[0],
        treatment_variance=noise[1],
        exact_p=exact,
        region=StratifiedRateRegion(*counts, weights),
    )


def expected_events(rates: Rates) -> float:
    """Return the smallest number of events or non-events that an arm expects."""
    pooled = rates.pooled
    arms = (rates.control_n, rates.n)
    return min(float((n * p).sum()) for n in arms for p in (pooled, 1.0 - pooled))


def few_expected_events_reason(rates: Rates) -> str | None:
    """Return why too few events are expected for the normal approximation, or None."""
    expected = expected_events(rates)
    if expected < EXPECTED_MIN:
        return (
            f"an arm expects only {expected:.1f} events or non-events by its phases, "
            f"{EXPECTED_MIN:.0f} are needed"
        )
    return None


def exact_p(rates: Rates) -> float | None:
    """Return the two-sided p of the exact conditional test of no difference in any stratum.

    Given the units and events of each stratum, the treatment's events are hypergeometric, and their
    sum has the convolution as its distribution (Cox 1958; Gart 1970). As in Fisher's test, p is the
    total probability of all sums at most as likely as the observed one. None if the support is too
    large to compute.
    """
    chances, least, support = np.ones(1), 0, 0
    for control_n, n, events in zip(
        rates.control_n, rates.n, rates.control_events + rates.events, strict=True
    ):
        low, high = max(0.0, events - control_n), min(n, events)
        support += int(high - low) + 1
        if support > FISHER_SUPPORT_MAX:
            return None
        first, stratum_chances = _hypergeometric(control_n, n, events, np.arange(low, high + 1.0))
        chances, least = np.convolve(chances, stratum_chances), least + first
    place = round(float(rates.events.sum())) - least
    observed = chances[place] if 0 <= place < len(chances) else 0.0
    # The tolerance makes sums of equal probability compare as equal in spite of rounding.
    p_value = float(chances[chances <= observed * (1.0 + 1e-7)].sum())
    return min(1.0, max(p_value, P_MIN))


def _hypergeometric(control_n: float, n: float, events: float, table: Floats) -> tuple[int, Floats]:
    """Return the first number of events with a positive probability, and the probabilities."""
    logs = _log_choose(n, table) + _log_choose(control_n, events - table)
    logs -= _log_choose(control_n + n, np.array(events))
    chances = np.exp(logs)
    # Probabilities that underflow to 0 would only lengthen the convolution.
    positive = np.flatnonzero(chances)
    first, last = int(positive[0]), int(positive[-1])
    return int(table[first]), chances[first : last + 1]


def _log_choose(n: float, k: Floats) -> Floats:
    result: Floats = -np.log1p(n) - betaln(n - k + 1.0, k + 1.0)
    return result


def gain_bounds_of(
    rates: Rates, *, alpha: float, is_increase_better: bool, is_final: bool
) -> tuple[float, float]:
    """Return the bounds of the treatment's gain for rare events, averaged over the strata.

    The exact bounds of each stratum at its part of `alpha` hold jointly (Bonferroni), and so does
    their average. They are wide, but valid for any drift of the rates.
    """
    weight = rates.control_n * rates.n / rates.total
    weights = weight / weight.sum()
    columns = np.column_stack([rates.control_n, rates.control_events, rates.n, rates.events])
    bounds = [
        gain_bounds(
            EventCounts(control_n, control_events), EventCounts(n, events),
            alpha=alpha / len(columns), is_increase_better=is_increase_better, is_final=is_final,
        )
        for control_n, control_events, n, events in columns.astype(int).tolist()
    ]  # fmt: skip
    low, high = weights @ np.array(bounds)
    return float(low), float(high)
