"""A result as a table for spreadsheets: one row for each metric and arm. Pure.

What does not exist is an empty cell, never a 0.
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
    """Return a row for each metric and arm, in the result's order; none before the first result."""
    return [
        _row(metric, arm, _comparison(metric, arm["name"]))
        | {"units_by_phase": _by_phase(result, arm["name"])}
        for metric in result.get("metrics", ())
        for arm in metric.get("arms", ())
    ]


def _comparison(metric: Mapping[str, Any], arm: str) -> Mapping[str, Any]:
    """Return what an arm's comparison with control says; nothing of control itself."""
    found = (each for each in metric.get("comparisons", ()) if each["arm"] == arm)
    return next(found, {})


def _by_phase(result: Mapping[str, Any], arm: str) -> str | None:
    """Return an arm's units in each weight phase, as "instant weight bp units; …", if several."""
    phases = result.get("phases") or ()
    if len(phases) < 2:
        return None
    return "; ".join(
        f"{phase['at']} {phase['weights_bp'].get(arm, 0)} bp {phase['units'].get(arm, 0)} units"
        for phase in phases
    )


def _row(
    metric: Mapping[str, Any], arm: Mapping[str, Any], compared: Mapping[str, Any]
) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row.update({name: metric.get(name) for name in METRIC_COLUMNS})
    row.update({name: arm.get(name) for name in ARM_COLUMNS})
    row.update({name: compared.get(name) for name in COMPARISON_COLUMNS})
    row.update(metric=metric.get("name"), arm=arm["name"])
    for reading in READINGS:
        numbers = compared.get(reading) or {}
        row.update({f"{reading}_{name}": numbers.get(name) for name in READING_COLUMNS})
    bayes = compared.get("bayes") or {}
    row.update(chance_to_beat=bayes.get("chance_to_beat"), expected_loss=bayes.get("expected_loss"))
    row["non_inferiority"] = (compared.get("non_inferiority") or {}).get("state")
    return row


def to_csv(result: Mapping[str, Any]) -> str:
    """Return the rows as CSV with a header; floats in the shortest form that reads back equal."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS)
    writer.writeheader()
    writer.writerows(result_rows(result))
    return out.getvalue()
