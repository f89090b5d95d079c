"""Render a result as a table for spreadsheets, with one row per metric and arm. Pure.

A missing value is an empty cell, never a 0.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

METRIC_COLUMNS = ["metric", "role", "kind", "direction", "quantile", "margin"]
ARM_COLUMNS = ["arm", "is_control", "weight_bp", "exposed", "n", "mean", "sd"]
COMPARISON_COLUMNS = [
    "outcome",
    "is_significant",
    "test",
    "difference",
    "standard_error",
    "uplift",
    "deciding",
    "p_holm",
    "q_bh",
    "mann_whitney_p",
    "variance_reduction",
    "basis",
    "phases",
    "left_out",
    "control_value",
    "value",
    "state",
    "reason",
]
READING_COLUMNS = ["p_value", "low", "high", "uplift_low", "uplift_high"]
READINGS = ["sequential", "fixed"]
COLUMNS = [
    *METRIC_COLUMNS,
    *ARM_COLUMNS,
    *COMPARISON_COLUMNS,
    *(f"{reading}_{column}" for reading in READINGS for column in READING_COLUMNS),
    "chance_to_beat",
    "expected_loss",
    "non_inferiority",
    "units_by_phase",
]


def result_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row per metric and arm, in the result's order; [] before the first result."""
    return [
        _row(metric, arm, _comparison(metric, arm["name"]))
        | {"units_by_phase": _format_phases(result, arm["name"])}
        for metric in result.get("metrics", ())
        for arm in metric.get("arms", ())
    ]


def _comparison(metric: Mapping[str, Any], arm: str) -> Mapping[str, Any]:
    """Return the arm's comparison with control; {} for control itself."""
    matches = (each for each in metric.get("comparisons", ()) if each["arm"] == arm)
    return next(matches, {})


def _format_phases(result: Mapping[str, Any], arm: str) -> str | None:
    """Return the arm's units per weight phase as "TIME WEIGHT bp N units; …", or None."""
    phases = result.get("phases") or ()
    if len(phases) < 2:
        return None
    return "; ".join(
        f"{phase['at']} {phase['weights_bp'].get(arm, 0)} bp {phase['units'].get(arm, 0)} units"
        for phase in phases
    )


def _row(
    metric: Mapping[str, Any], arm: Mapping[str, Any], comparison: Mapping[str, Any]
) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row.update({name: metric.get(name) for name in METRIC_COLUMNS})
    row.update({name: arm.get(name) for name in ARM_COLUMNS})
    row.update({name: comparison.get(name) for name in COMPARISON_COLUMNS})
    row.update(metric=metric.get("name"), arm=arm["name"])
    for reading in READINGS:
        numbers = comparison.get(reading) or {}
        row.update({f"{reading}_{name}": numbers.get(name) for name in READING_COLUMNS})
    bayes = comparison.get("bayes") or {}
    row.update(chance_to_beat=bayes.get("chance_to_beat"), expected_loss=bayes.get("expected_loss"))
    row["non_inferiority"] = (comparison.get("non_inferiority") or {}).get("state")
    return row


def to_csv(result: Mapping[str, Any]) -> str:
    """Return the rows as CSV with a header; floats have the shortest form that round-trips."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS)
    writer.writeheader()
    writer.writerows(result_rows(result))
    return buffer.getvalue()
