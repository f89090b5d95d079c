"""The shop's clock is behind: its customers seem to buy before they got a prediction."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from apps.experiments.ingestion import apply_exposures, record_outcomes
from apps.experiments.models import Experiment
from apps.experiments.result_tables.notices import notices
from apps.experiments.results import compute_result
from apps.experiments.unit_values import fold_all
from contract.request_ids import request_id_unit
from tests.experiments.factories import NOW, NOW_MS, batch, exposure, make_running, outcome

pytestmark = pytest.mark.django_db

UNITS = 600
LATER = NOW + timedelta(minutes=1)


def everybody_buys(
    experiment: Experiment, behind_s: float, *, by_request: bool = False
) -> dict[str, Any]:
    """Return the result if each unit buys 0.1 s after its response, by a clock `behind_s` late."""
    met, bought = [], []
    for i in range(UNITS):
        at_ms = NOW_MS + i * 10
        variant = "strong" if i % 2 else "weak"
        met.append(exposure(experiment, f"u{i}", variant, at_ms=at_ms))
        bought_ms = round(at_ms + 100 - behind_s * 1_000)
        identity = {"unit_id": f"u{i}"}
        if by_request:
            answered = b"%x%b" % ((at_ms + 1) * 10**6, request_id_unit(f"u{i}"))
            identity = {"unit_id": "", "request_id": f"digits:1:a1-{answered.decode()}"}
        bought.append(outcome(f"e{i}", occurred_at_ms=bought_ms, **identity))
    apply_exposures([batch(exposures=tuple(met))], LATER)
    record_outcomes(bought, LATER)
    fold_all()
    result = compute_result(experiment, LATER).result
    assert result is not None
    return result


def counted(result: dict[str, Any]) -> int:
    return sum(arm["n"] for arm in result["metrics"][0]["arms"])


def test_outcomes_of_a_clock_that_is_3_s_behind_count() -> None:
    result = everybody_buys(make_running(), 3.0)

    assert counted(result) == UNITS
    assert result["attribution"]["metrics"]["accuracy"]["in_time"] == UNITS
    assert not [notice for notice in notices(result) if "exposure" in notice.text]


def test_outcomes_of_a_clock_that_is_60_s_behind_do_not_count_and_a_notice_reports_it() -> None:
    result = everybody_buys(make_running(), 60.0)

    assert counted(result) == 0
    assert result["attribution"]["metrics"]["accuracy"] == {
        "in_time": 0, "before": UNITS, "before_mean_s": 60, "after_window": 0, "unknown_units": 0,
    }  # fmt: skip
    first = notices(result)[0]
    assert first.tone == "bad"
    assert (
        "all outcomes of exposed units (600) are dated before their unit's exposure" in first.text
    )


def test_outcomes_with_a_request_id_count_despite_the_clock() -> None:
    result = everybody_buys(make_running(), 60.0, by_request=True)

    assert counted(result) == UNITS
    assert result["attribution"]["metrics"]["accuracy"]["before"] == 0
