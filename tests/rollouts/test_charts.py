"""Figures from rows: their values, units and empty forms."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from apps.rollouts import charts
from apps.rollouts.models import Evaluation, RolloutEvent
from apps.rollouts.selectors.telemetry import Point

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def point(second: int, arm: str, **fields: Any) -> Point:
    return Point(at=START + timedelta(seconds=second), arm=arm, span_s=10, **fields)


def named(figure: charts.Figure) -> dict[str, Any]:
    return {trace["name"]: trace for trace in figure["data"]}


def answer(second: int, check: str, **evidence: Any) -> Evaluation:
    at = START + timedelta(seconds=second)
    return Evaluation(at=at, check_name=check, evidence=evidence)


def test_requests_are_per_second_and_stacked_with_zeros_for_gaps() -> None:
    points = [point(0, "1", requests=50), point(10, "1", requests=60), point(10, "2", requests=5)]

    drawn = named(charts.draw_requests(points, {"1": "--stable", "2": "--canary"}, "version "))

    assert drawn["version 1"]["y"] == [5, 6]
    assert drawn["version 2"]["y"] == [0, 0.5]
    assert drawn["version 2"]["stackgroup"] == drawn["version 1"]["stackgroup"]
    assert drawn["version 2"]["meta"] == "--canary"


def test_error_rates_are_in_per_cent_and_absent_without_requests() -> None:
    points = [point(0, "canary", requests=200, errors=6), point(10, "canary")]

    drawn = named(charts.draw_error_rate(points, charts.ARM_COLOURS))

    assert drawn["canary"]["y"] == [3, None]


def test_latency_is_in_milliseconds() -> None:
    points = [point(0, "stable", requests=10, latency={80: 10}), point(10, "stable")]

    drawn = named(charts.draw_latency(points, charts.ARM_COLOURS))

    assert drawn["stable p95"]["y"] == [1.024, None]
    assert drawn["stable p50"]["line"] == {"dash": "dot"}


def test_the_observed_and_the_configured_share_are_drawn() -> None:
    points = [point(0, "stable", units=75), point(0, "canary", units=25), point(10, "stable")]
    events = [RolloutEvent(at=START, weight_bp=2_500)]

    drawn = named(charts.draw_share(points, events, START + timedelta(seconds=60)))

    assert drawn["observed"]["y"] == [25, None]
    assert drawn["configured"]["y"] == [25, 25]
    assert drawn["configured"]["line"]["shape"] == "hv"


def test_evidence_is_in_decades_with_the_thresholds_that_decide() -> None:
    hundred = math.log(100)
    rows = [
        answer(at, "error-rate", log_e_margin=0, log_e_zero_beyond=hundred, log_e_mirror=-hundred)
        for at in (0, 10)
    ]
    rows[-1].evidence |= {"log_e_needed": math.log(200), "log_e_promote": math.log(10)}

    drawn = named(charts.draw_evidence(rows))

    assert drawn["error-rate: harm"]["y"] == [2, 2]
    assert drawn["error-rate: safety"]["y"] == [-2, -2]
    assert drawn["rolls back"]["y"] == [2.301, 2.301]
    assert drawn["proves safe"]["y"] == [1, 1]


def test_latency_keeps_its_thresholds_with_its_percentiles() -> None:
    row = answer(0, "latency", log_e_margin=1, p95={"log_e_needed": math.log(200)})

    assert named(charts.draw_evidence([row]))["rolls back"]["y"] == [2.301, 2.301]


@pytest.mark.parametrize("log_e", [1e6, -1e6])
def test_overwhelming_evidence_is_clipped(log_e: float) -> None:
    drawn = named(charts.draw_evidence([answer(0, "error-rate", log_e_margin=log_e)]))

    assert abs(drawn["error-rate: harm"]["y"][0]) == charts.DECADES_MAX


def test_results_without_evidence_draw_nothing() -> None:
    figure = charts.draw_evidence([answer(0, "error-rate", canary_n=0)])

    assert figure["data"] == []


@pytest.mark.parametrize("drawer", [charts.draw_requests, charts.draw_latency])
def test_no_rows_make_an_empty_figure_that_is_valid_json(drawer: Any) -> None:
    assert json.loads(json.dumps(drawer([], {}), allow_nan=False))["data"] == []


def test_versions_keep_their_colours() -> None:
    colours = charts.colours_of(["1", "2", "3", "4"], stable="2", canary="4")

    assert colours == {"1": "--series-3", "3": "--series-4", "2": "--stable", "4": "--canary"}


def test_a_version_that_is_stable_and_canary_has_stables_colour() -> None:
    assert charts.colours_of(["1"], stable="1", canary="1") == {"1": "--stable"}


def test_an_empty_chart_has_a_text() -> None:
    nothing = charts.draw_error_rate([], charts.ARM_COLOURS)["layout"]
    assert nothing["annotations"][0]["text"] == "No data yet"
    assert nothing["xaxis"]["visible"] is False
    some = charts.draw_error_rate([point(0, "canary", requests=1)], charts.ARM_COLOURS)["layout"]
    assert "annotations" not in some


def test_the_canarys_share_includes_the_baseline() -> None:
    arms = {"canary": 5, "baseline": 5, "stable": 90}
    points = [point(0, arm, units=units) for arm, units in arms.items()]
    assert named(charts.draw_share(points, [], START))["observed"]["y"] == [5]
