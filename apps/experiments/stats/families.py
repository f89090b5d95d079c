"""Corrections for multiple comparisons, which keep the error rate of a family."""

from __future__ import annotations

from collections.abc import Sequence


def holm_levels(p_values: Sequence[float | None], alpha: float) -> list[float]:
    """Return the level of each comparison by Holm's step-down procedure (1979).

    The i-th smallest of m p-values has the level α/(m − i + 1), up to the first that exceeds its
    level; that one and all larger ones have this level. So a hypothesis is rejected exactly when
    its p-value is at most its level, and an interval at that level agrees. A comparison without a
    p-value counts in m and has the level α/m.
    """
    levels = [alpha / max(1, len(p_values))] * len(p_values)
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    level = alpha / max(1, len(p_values))
    is_rejecting = True
    for step, (p_value, index) in enumerate(order):
        if is_rejecting:
            level = alpha / (len(p_values) - step)
            is_rejecting = p_value <= level
        levels[index] = level
    return levels


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Holm's adjusted p-values. A missing p-value gives None and still counts in m."""
    m = len(p_values)
    adjusted: list[float | None] = [None] * m
    highest = 0.0
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    for step, (p_value, index) in enumerate(order):
        highest = max(highest, min(1.0, (m - step) * p_value))
        adjusted[index] = highest
    return adjusted


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Benjamini and Hochberg's (1995) adjusted p-values over the p-values that exist."""
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    lowest = 1.0
    for rank in range(len(order), 0, -1):
        p_value, index = order[rank - 1]
        lowest = min(lowest, p_value * len(order) / rank)
        adjusted[index] = lowest
    return adjusted
