"""Rates of events of which hardly any were seen, such as errors: bounds that need no normal law."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.optimize import brentq
from scipy.special import betaincinv, betaln

# Jeffreys' prior: it bounds a rate without an event best among the usual ones.
PRIOR = 0.5
NEAR_NOUGHT = 1e-300


@dataclass(frozen=True)
class Seen:
    """How many of an arm's units had the event."""

    n: int
    events: int


def gain_bounds(
    control: Seen, treatment: Seen, *, alpha: float, is_increase_better: bool, is_final: bool
) -> tuple[float, float]:
    """Bound how much better treatment's rate is, from each side with an error of `alpha`.

    Each arm's rate is bounded with half of it. At the end by Clopper and Pearson (1934), before
    by a confidence sequence, which holds at every look.
    """
    bound = _clopper_pearson if is_final else _sequence
    (low_a, high_a), (low_b, high_b) = (
        (1.0 - bound(arm.n, arm.n - arm.events, alpha / 2.0), bound(arm.n, arm.events, alpha / 2.0))
        for arm in (control, treatment)
    )
    low, high = low_b - high_a, high_b - low_a
    return (low, high) if is_increase_better else (-high, -low)


def _sequence(n: int, events: int, alpha: float) -> float:
    """Return the upper bound that is ever too low with a chance of `alpha` at most.

    Where p is the rate, B(events + ½, rest + ½)/B(½, ½) over p^events · (1 − p)^rest, with rest =
    n − events, is a martingale, and ever reaches 1/alpha with that chance at most (Robbins 1970;
    Ville 1939).
    """
    if events >= n:
        return 1.0
    mixed = betaln(events + PRIOR, n - events + PRIOR) - betaln(PRIOR, PRIOR) + math.log(alpha)

    def excess(p: float) -> float:
        return float(mixed - events * math.log(p) - (n - events) * math.log1p(-p))

    seen = max(events / n, NEAR_NOUGHT)
    return float(brentq(excess, seen, 1.0 - 1e-16, xtol=1e-18)) if excess(seen) < 0.0 else seen


def _clopper_pearson(n: int, events: int, alpha: float) -> float:
    return 1.0 if events >= n else float(betaincinv(events + 1, n - events, 1.0 - alpha))
