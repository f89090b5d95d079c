"""Many comparisons at once: how strictly each is read, so that the family keeps its level."""

from __future__ import annotations

from collections.abc import Sequence


def holm_levels(p_values: Sequence[float | None], alpha: float) -> list[float]:
    """Return the level that Holm's step-down procedure (1979) reads each comparison at.

    The i-th smallest of m p-values is read at α/(m − i + 1), until one is not reached; that one and
    the others are read at its level. A comparison is therefore rejected exactly when its p-value is
    at most its level, and an interval at that level agrees. What has no p-value counts in m, since
    it was asked, and is read at the strictest level reached.
    """
    levels = [alpha / max(1, len(p_values))] * len(p_values)
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    level = alpha / max(1, len(p_values))
    going = True
    for step, (p_value, index) in enumerate(order):
        if going:
            level = alpha / (len(p_values) - step)
            going = p_value <= level
        levels[index] = level
    return levels


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Holm's adjusted p-values, None where there is none; None still counts in m."""
    m = len(p_values)
    adjusted: list[float | None] = [None] * m
    highest = 0.0
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    for step, (p_value, index) in enumerate(order):
        highest = max(highest, min(1.0, (m - step) * p_value))
        adjusted[index] = highest
    return adjusted


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Benjamini and Hochberg's (1995) adjusted p-values over those that exist."""
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    lowest = 1.0
    for rank in range(len(order), 0, -1):
        p_value, index = order[rank - 1]
        lowest = min(lowest, p_value * len(order) / rank)
        adjusted[index] = lowest
    return adjusted
