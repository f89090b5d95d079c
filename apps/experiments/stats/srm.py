"""Sample-ratio mismatch: did the variants get the shares of units that were configured?

A mismatch means that units were lost or doubled on one side; no result can be read before it is
explained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc, gammaln

from apps.experiments.stats.comparison import P_MIN, State

CONCENTRATION = 10_000.0
SEQUENTIAL_ALPHA = 0.01
ONE_LOOK_P_MAX = 0.001
EXPECTED_MIN = 5.0


@dataclass(frozen=True)
class SampleRatio:
    """`state` is OK, SRM, UNEXPECTED_UNITS or NOT_ENOUGH_DATA; `reason` carries the numbers.

    `p_value` is of one look, `sequential_p_value` holds at every look.
    """

    state: State
    reason: str
    observed: tuple[int, ...]
    expected: tuple[float, ...]
    p_value: float | None = None
    sequential_p_value: float | None = None


def check_sample_ratio(
    counts: Sequence[int], weights_bp: Sequence[int], *, is_one_look: bool = False
) -> SampleRatio:
    """Units per arm against configured weights.

    While running the sequential test decides (α = 0.01); with `is_one_look`, at the planned end,
    chi-square (p < 0.001) decides as well. Arms of weight 0 take no part; units seen in one are an
    error of their own. Raises ValueError if no weight is positive or a number is negative.
    """
    if len(counts) != len(weights_bp) or min(*counts, *weights_bp) < 0 or sum(weights_bp) <= 0:
        raise ValueError("counts and weights must match, not be negative, and some weight be set")
    total, whole = sum(counts), sum(weights_bp)
    observed = tuple(counts)
    expected = tuple(total * weight / whole for weight in weights_bp)
    stray = sum(n for n, weight in zip(counts, weights_bp, strict=True) if weight == 0)
    if stray:
        reason = f"{stray} units in a variant of weight 0"
        return SampleRatio(State.UNEXPECTED_UNITS, reason, observed, expected)
    pairs = [(n, w / whole) for n, w in zip(counts, weights_bp, strict=True) if w > 0]
    seen, shares = (np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True))
    if total == 0 or len(pairs) < 2:
        return SampleRatio(State.NOT_ENOUGH_DATA, "nothing to compare", observed, expected)
    p_value = chi_square_p(seen, shares)
    sequential_p = math.exp(min(0.0, -log_bayes_factor(seen, shares)))
    off = sequential_p <= SEQUENTIAL_ALPHA
    if is_one_look and min(n for n in expected if n > 0.0) >= EXPECTED_MIN:
        off = off or p_value < ONE_LOOK_P_MAX
    told = " : ".join(f"{n:,}" for n in observed)
    plan = " : ".join(f"{n:,.0f}" for n in expected)
    reason = f"units {told} against {plan} expected (p = {sequential_p:.2g} at any look)"
    return SampleRatio(
        State.SRM if off else State.OK,
        reason,
        observed,
        expected,
        max(p_value, P_MIN),
        max(sequential_p, P_MIN),
    )


def chi_square_p(counts: NDArray[np.float64], shares: NDArray[np.float64]) -> float:
    """Pearson's chi-square goodness of fit with (arms − 1) degrees of freedom."""
    expected = counts.sum() * shares
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return float(chdtrc(len(counts) - 1, statistic))


def log_bayes_factor(counts: NDArray[np.float64], shares: NDArray[np.float64]) -> float:
    """ln of the Dirichlet-multinomial marginal likelihood over the configured multinomial's.

    Prior Dirichlet(k·shares) with k = 10,000 (Lindon and Malek 2020). It is a martingale under the
    configured shares, so reaching 1/α at any time refutes them at level α.
    """
    prior = CONCENTRATION * shares
    n = counts.sum()
    marginal = gammaln(CONCENTRATION) - gammaln(CONCENTRATION + n)
    marginal += (gammaln(prior + counts) - gammaln(prior)).sum()
    return float(marginal - (counts * np.log(shares)).sum())
