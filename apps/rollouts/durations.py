"""Formats durations for people."""

from __future__ import annotations

DAY_S = 86_400.0
YEAR_S = 365 * DAY_S
# A unit, its length in seconds, and the duration from which the next unit is used.
UNITS = (
    ("s", 1.0, 120.0),
    ("min", 60.0, 7_200.0),
    ("h", 3_600.0, 2 * DAY_S),
    ("days", DAY_S, 2 * YEAR_S),
)


def format_duration(seconds: float) -> str:
    """Format `seconds` in a suitable unit: 50 s, 12 min, 3 h, 9 days."""
    for unit, length_s, end_s in UNITS:
        if seconds < end_s:
            return f"{_digits(seconds / length_s)} {unit}"
    return f"{seconds / YEAR_S:,.0f} years"


def _digits(count: float) -> str:
    return f"{count:.1f}".removesuffix(".0") if 0.0 < count < 10.0 else f"{count:.0f}"
