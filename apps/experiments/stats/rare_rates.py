"""Bounds for rates of rare events, such as errors, without a normal approximation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, betaln, expit

Floats = NDArray[np.float64]

# Jeffreys' prior. Of the usual priors it gives the tightest bound of a rate without events.
PRIOR = 0.5
NEAR_NOUGHT = 1e-300
# Bisection steps over a log-odds range of about 700, down to the precision of a float.
HALVINGS = 64


@dataclass(frozen=True)
class EventCounts:
    """The number of units of an arm, and of those with the event."""

    n: int
    events: int


def gain_bounds(
    control: EventCounts,
    treatment: EventCounts,
    *,
    alpha: float,
    is_increase_better: bool,
    is_final: bool,
) -> tuple[float, float]:
    """Return the bounds of the treatment's gain, each with the one-sided error `alpha`.

    Each arm's rate is bounded with half of `alpha`: at the end by Clopper and Pearson (1934),
    before it by a confidence sequence, which holds at every look.
    """
    counts = (control.n, treatment.n), (control.events, treatment.events)
    n, events = (np.array(each, dtype=np.float64) for each in counts)
    low, high = difference_bounds(n, events, alpha=alpha, is_final=is_final)
    bounds = float(low), float(high)
    return bounds if is_increase_better else (-bounds[1], -bounds[0])


def difference_bounds(
    n: Floats, events: Floats, *, alpha: float, is_final: bool
) -> tuple[Floats, Floats]:
    """Return the bounds of treatment's rate minus control's, as `gain_bounds` does.

    The first axis of `n` and `events` is (control, treatment); the other axes are comparisons.
    """
    bound = _clopper_pearson if is_final else _sequence
    high = bound(n, events, alpha / 2.0)
    low = 1.0 - bound(n, n - events, alpha / 2.0)
    return low[1] - high[0], high[1] - low[0]


def _sequence(n: Floats, events: Floats, alpha: float) -> Floats:
    """Return the upper bound of a confidence sequence: too low at any look with at most `alpha`.

    With the true rate p and rest = n − events, B(events + ½, rest + ½)/B(½, ½) over p^events · (1 −
    p)^rest is a martingale, which ever reaches 1/alpha with at most this probability (Robbins 1970;
    Ville 1939).
    """
    rest = np.maximum(n - events, NEAR_NOUGHT)
    mixed = betaln(events + PRIOR, rest + PRIOR) - betaln(PRIOR, PRIOR) + math.log(alpha)
    # In log-odds, p = 1/(1 + e^−x). At −mixed/rest the factor (1 − p)^rest alone is small enough.
    low, high = np.log(np.maximum(events, NEAR_NOUGHT) / rest), -mixed / rest
    for _ in range(HALVINGS):
        middle = (low + high) / 2.0
        excess = mixed + events * np.logaddexp(0.0, -middle) + rest * np.logaddexp(0.0, middle)
        low, high = np.where(excess < 0.0, middle, low), np.where(excess < 0.0, high, middle)
    return np.asarray(np.where(events >= n, 1.0, expit(high)))


def _clopper_pearson(n: Floats, events: Floats, alpha: float) -> Floats:
    rest = np.maximum(n - events, 1.0)
    return np.asarray(np.where(events >= n, 1.0, betaincinv(events + 1, rest, 1.0 - alpha)))
