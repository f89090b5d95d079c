"""Bayesian estimates shown beside the verdict. They are not valid under peeking.

Rates have the prior Beta(1, 1). All other metrics have the prior N(0, 0.3²) on the relative effect.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import betainc, betaincinv, ndtr, roots_legendre

PRIOR_SD = 0.3
NODES = 400
TAIL = 1e-12
# With a standard error above this multiple of the prior deviation the data add nothing.
NOISE_MAX = 1e6


@dataclass(frozen=True)
class Bayes:
    """`chance_to_beat` is the probability that the treatment is better than control.

    `expected_loss`, in the metric's unit, is the mean cost of choosing the treatment: the loss
    where it is worse, and 0 where it is better (Stucchio 2015).
    """

    chance_to_beat: float
    expected_loss: float
    prior: str


def posterior_of_rates(
    control_n: int, control_events: int, n: int, events: int, *, is_increase_better: bool
) -> Bayes:
    """Compare two rates by the beta-binomial model.

    Computed by quadrature: E[max(A − B, 0)] = ∫ F_B(x)·(1 − F_A(x)) dx.
    """
    a = (control_events + 1.0, control_n - control_events + 1.0)
    b = (events + 1.0, n - events + 1.0)
    better, worse = (b, a) if is_increase_better else (a, b)
    points, weights = roots_legendre(NODES)
    # P(better > worse) = ∫ F_worse(F_better⁻¹(u)) du, u in (0, 1).
    u = (points + 1.0) / 2.0
    chance = float(np.dot(weights / 2.0, betainc(*worse, betaincinv(*better, u))))
    low = float(min(betaincinv(*a, TAIL), betaincinv(*b, TAIL)))
    high = float(max(betaincinv(*a, 1.0 - TAIL), betaincinv(*b, 1.0 - TAIL)))
    x = low + (high - low) * u
    inside = betainc(*better, x) * (1.0 - betainc(*worse, x))
    loss = float(np.dot(weights, inside)) * (high - low) / 2.0
    return Bayes(min(1.0, max(0.0, chance)), max(0.0, loss), "Beta(1, 1) on each rate")


def posterior_of_difference(
    difference: float, standard_error: float, control_mean: float, *, is_increase_better: bool
) -> Bayes | None:
    """Return the normal posterior of the difference.

    None if control's mean is 0 (the prior is relative to it), if the standard error is 0, or if the
    data add nothing to the prior.
    """
    prior_sd = PRIOR_SD * abs(control_mean)
    if prior_sd <= 0.0 or standard_error <= 0.0 or not math.isfinite(prior_sd):
        return None
    noise = standard_error / prior_sd
    if noise > NOISE_MAX:
        return None
    weight = 1.0 / (1.0 + noise * noise)
    mean = weight * difference * (1.0 if is_increase_better else -1.0)
    sd = math.sqrt(weight) * standard_error
    z = mean / sd
    density = math.exp(-z * z / 2.0) / math.sqrt(2.0 * math.pi)
    loss = sd * density - mean * float(ndtr(-z))
    return Bayes(float(ndtr(z)), max(0.0, loss), f"N(0, {PRIOR_SD}²) on the relative effect")
