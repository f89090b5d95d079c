"""Sample ratio mismatch (SRM): tests whether the variants got their configured shares of units.

A mismatch means that units were lost or duplicated in a variant. No result is valid before the
cause is known.
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

    `p_value` is valid at one look, `sequential_p_value` at every look.
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
    """Test units per arm against constant weights; see `check_phases`."""
    return check_phases(
        [(counts, [float(weight) for weight in weights_bp])], is_one_look=is_one_look
    )


def check_phases(
    phases: Sequence[tuple[Sequence[int], Sequence[float]]], *, is_one_look: bool = False
) -> SampleRatio:
    """Test units per arm against the shares of each phase; a phase is (counts, weights).

    While the experiment runs, the sequential test decides (α = 0.01). With `is_one_look`, at the
    planned end, chi-square decides as well (p < 0.001). Bayes factors of phases multiply;
    chi-squares and their degrees of freedom add. An arm of weight 0 is not part of a phase; units
    in it give the state UNEXPECTED_UNITS. Raises ValueError if a phase has no positive weight or a
    negative number.
    """
    _check_phases(phases)
    arms = len(phases[0][0])
    observed = tuple(sum(counts[i] for counts, _ in phases) for i in range(arms))
    planned = [
        [sum(counts) * weight / sum(weights) for weight in weights] for counts, weights in phases
    ]
    expected = tuple(sum(row[i] for row in planned) for i in range(arms))
    stray = sum(
        n for counts, weights in phases for n, w in zip(counts, weights, strict=True) if w == 0
    )
    if stray:
        reason = f"{stray} units in a variant of weight 0"
        return SampleRatio(State.UNEXPECTED_UNITS, reason, observed, expected)
    used = [pair for pair in map(_weighted_arms, phases) if pair is not None]
    if not used:
        return SampleRatio(State.NOT_ENOUGH_DATA, "no units to compare", observed, expected)
    p_value = _chi_square(used)
    log_factor = sum(log_bayes_factor(counts, shares) for counts, shares in used)
    sequential_p = math.exp(min(0.0, -log_factor))
    is_mismatch = sequential_p <= SEQUENTIAL_ALPHA
    fewest = min(float((counts.sum() * shares).min()) for counts, shares in used)
    if is_one_look and fewest >= EXPECTED_MIN:
        is_mismatch = is_mismatch or p_value < ONE_LOOK_P_MAX
    counts_text = " : ".join(f"{n:,}" for n in observed)
    expected_text = " : ".join(f"{n:,.0f}" for n in expected)
    reason = (
        f"units {counts_text} against {expected_text} expected (p = {sequential_p:.2g} at any look)"
    )
    return SampleRatio(
        State.SRM if is_mismatch else State.OK,
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
                "counts and weights must have equal lengths, no negatives, and a positive weight"
            )


def _weighted_arms(
    phase: tuple[Sequence[int], Sequence[float]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return counts and shares of the arms with a weight, or None if fewer than two have one."""
    counts, weights = phase
    pairs = [(n, w / sum(weights)) for n, w in zip(counts, weights, strict=True) if w > 0]
    if sum(counts) == 0 or len(pairs) < 2:
        return None
    observed, shares = (np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True))
    return observed, shares


def _chi_square(used: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> float:
    statistic = freedom = 0.0
    for counts, shares in used:
        expected = counts.sum() * shares
        statistic += float(((counts - expected) ** 2 / expected).sum())
        freedom += len(counts) - 1
    return float(chdtrc(freedom, statistic))


def log_bayes_factor(counts: NDArray[np.float64], shares: NDArray[np.float64]) -> float:
    """Return the log Bayes factor against the shares of one phase: see `log_bayes_factors`."""
    return float(log_bayes_factors(counts, shares))
