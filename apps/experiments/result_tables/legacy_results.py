"""Converts results stored in schema 1, with one metric each, to schema 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ONE_METRIC = ("kind", "direction", "state", "reason", "verdict", "winner")


def upgrade_schema(result: Mapping[str, Any], primary: str) -> Mapping[str, Any]:
    """Return a stored result in the current schema; `primary` names the metric of an older one."""
    if not result or "metrics" in result or "comparisons" not in result:
        return result
    comparisons = [{**comparison} for comparison in result["comparisons"]]
    arms = [{**arm, "exposed": arm.get("exposed_n", arm.get("n"))} for arm in result["arms"]]
    metric = {
        **{field: result.get(field) for field in ONE_METRIC},
        "name": primary,
        "role": "primary",
        "is_significant": result.get("is_significant", False),
        "arms": arms,
        "comparisons": comparisons,
    }
    return {**result, "primary": primary, "metrics": [metric]}
