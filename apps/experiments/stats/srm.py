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
from scipy.special import chdtrc

from apps.experiments.stats.comparison import P_MIN, State
from apps.lib.multinomial import log_bayes_factors

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
    """Units per arm against configured weights that never changed; see `check_phases`."""
    return check_phases(
        [(counts, [float(weight) for weight in weights_bp])], is_one_look=is_one_look
    )


def check_phases(
    phases: Sequence[tuple[Sequence[int], Sequence[float]]], *, is_one_look: bool = False
) -> SampleRatio:
    """Units per arm against the shares of each phase, for phases of (counts, weights).

    While running the sequential test decides (α = 0.01); with `is_one_look`, at the planned end,
    chi-square (p < 0.001) decides as well. Bayes factors of phases multiply, chi-squares add with
    their degrees of freedom. Arms of weight 0 take no part in a phase; units seen in one are an
    error of their own. Raises ValueError if a phase has no positive weight or a negative number.
    """
    _check_phases(phases)
    arms = len(phases[0][0])
    observed = tuple(sum(counts[i] for counts, _ in phases) for i in range(arms))
    planned = [
        [sum(counts) * weight / sum(weights) for weight in weights] for counts, weights in phases
    ]
    expected = tuple(sum(plan[i] for plan in planned) for i in range(arms))
    stray = sum(
        n for counts, weights in phases for n, w in zip(counts, weights, strict=True) if w == 0
    )
    if stray:
        reason = f"{stray} units in a variant of weight 0"
        return SampleRatio(State.UNEXPECTED_UNITS, reason, observed, expected)
    used = [pair for pair in map(_in_play, phases) if pair is not None]
    if not used:
        return SampleRatio(State.NOT_ENOUGH_DATA, "nothing to compare", observed, expected)
    p_value = _chi_square(used)
    log_factor = sum(log_bayes_factor(seen, shares) for seen, shares in used)
    sequential_p = math.exp(min(0.0, -log_factor))
    off = sequential_p <= SEQUENTIAL_ALPHA
    fewest = min(float((seen.sum() * shares).min()) for seen, shares in used)
    if is_one_look and fewest >= EXPECTED_MIN:
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


def _check_phases(phases: Sequence[tuple[Sequence[int], Sequence[float]]]) -> None:
    for counts, weights in phases:
        if len(counts) != len(weights) or min(*counts, *weights) < 0 or sum(weights) <= 0:
            raise ValueError(
                "counts and weights must match, not be negative, and some weight be set"
            )


def _in_play(
    phase: tuple[Sequence[int], Sequence[float]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Counts and shares of the arms with a weight, or None where there is nothing to compare."""
    counts, weights = phase
    pairs = [(n, w / sum(weights)) for n, w in zip(counts, weights, strict=True) if w > 0]
    if sum(counts) == 0 or len(pairs) < 2:
        return None
    seen, shares = (np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True))
    return seen, shares


def _chi_square(used: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> float:
    statistic = freedom = 0.0
    for seen, shares in used:
        expected = seen.sum() * shares
        statistic += float(((seen - expected) ** 2 / expected).sum())
        freedom += len(seen) - 1
    return float(chdtrc(freedom, statistic))


def log_bayes_factor(counts: NDArray[np.float64], shares: NDArray[np.float64]) -> float:
    """The evidence against the shares of one phase: see `log_bayes_factors`."""
    return float(log_bayes_factors(counts, shares))
