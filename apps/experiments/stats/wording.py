"""Literal types that results share, and the conversion of a result to JSON."""

from __future__ import annotations

import math
from typing import Any, Literal

from apps.experiments.stats.comparison import State, UpliftState

Direction = Literal["increase", "decrease"]
Outcome = Literal["better", "worse", "undecided"]
Phase = Literal["running", "final"]
Basis = Literal["all", "phases", "present-phase"]


def plain(value: Any) -> Any:
    """Return plain JSON types; a number that is not finite becomes None."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, State | UpliftState) else value
