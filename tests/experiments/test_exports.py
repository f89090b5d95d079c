"""A result as a table: one row per metric and arm; missing values are empty."""

from __future__ import annotations

import csv
import io
from typing import Any

from apps.experiments.exports import COLUMNS, result_rows, to_csv

READING = {"p_value": 0.01, "low": 0.05, "high": 0.15, "uplift_low": None, "uplift_high": 0.3}
RESULT: dict[str, Any] = {
    "metrics": [
        {
            "name": "accuracy",
            "role": "primary",
            "arms": [{"name": "weak", "n": 10, "mean": 0.5}, {"name": "strong", "n": 9}],
            "comparisons": [
                {"arm": "strong", "outcome": "better", "difference": 0.1, "sequential": READING}
            ],
        }
    ]
}


def test_each_metric_and_arm_has_a_row() -> None:
    control, treatment = result_rows(RESULT)

    assert (control["arm"], control["mean"], control["outcome"]) == ("weak", 0.5, None)
    assert (treatment["metric"], treatment["arm"]) == ("accuracy", "strong")
    assert (treatment["sequential_low"], treatment["fixed_low"]) == (0.05, None)


def test_a_table_reads_back_and_empty_cells_are_not_zeros() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(RESULT))))

    assert list(rows[0]) == COLUMNS
    assert rows[1]["difference"] == "0.1"
    assert rows[1]["mean"] == rows[1]["sequential_uplift_low"] == ""


def test_before_the_first_result_there_is_only_the_header() -> None:
    assert to_csv({}).splitlines() == [",".join(COLUMNS)]


def test_units_by_phase_are_exported_if_there_are_several_phases() -> None:
    phases = [
        {"at": "2026-03-01T12:00:00+00:00", "weights_bp": {"weak": 9_000}, "units": {"weak": 10}},
        {"at": "2026-03-02T12:00:00+00:00", "weights_bp": {"weak": 5_000}, "units": {"weak": 3}},
    ]
    control, treatment = result_rows(RESULT | {"phases": phases})

    assert control["units_by_phase"] == (
        "2026-03-01T12:00:00+00:00 9000 bp 10 units; 2026-03-02T12:00:00+00:00 5000 bp 3 units"
    )
    assert treatment["units_by_phase"].endswith("0 bp 0 units")
    assert result_rows(RESULT | {"phases": phases[:1]})[0]["units_by_phase"] is None
