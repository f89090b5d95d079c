"""Results that were frozen in the first schema, one metric each, read as those of the second."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ONE_METRIC = ("kind", "direction", "state", "reason", "verdict", "winner")


def as_present(result: Mapping[str, Any], primary: str) -> Mapping[str, Any]:
    """Return a stored result in the present schema; `primary` names an older one's only metric."""
    if not result or "metrics" in result or "comparisons" not in result:
        return result
    compared = [{**found} for found in result["comparisons"]]
    arms = [{**arm, "exposed": arm.get("exposed_n", arm.get("n"))} for arm in result["arms"]]
    metric = {
        **{field: result.get(field) for field in ONE_METRIC},
        "name": primary,
        "role": "primary",
        "is_significant": result.get("is_significant", False),
        "arms": arms,
        "comparisons": compared,
    }
    return {**result, "primary": primary, "metrics": [metric]}
