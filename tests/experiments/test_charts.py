"""Figures: a stored result in, Plotly JSON out, with 0, 1 and 10 variants."""

from __future__ import annotations

import json
from typing import Any

import pytest

from apps.experiments.charts import exposure_figure, interval_figure
from apps.experiments.stats.moments import Moments
from apps.experiments.stats.results import ArmSummary, Kind, analyse


def result(kind: Kind = "proportion", treatments: int = 1, n: int = 400) -> dict[str, Any]:
    arms = [ArmSummary.of_events("a", 5_000, n, n // 2, is_control=True)]
    arms += [ArmSummary.of_events(f"t{i}", 500, n, n // 2 + i) for i in range(treatments)]
    return analyse(arms, kind=kind, planned_units=2_000).to_json()


def test_a_proportions_interval_is_in_points() -> None:
    sequential, fixed = interval_figure(result(treatments=9))["data"]

    assert sequential["y"] == [f"t{i}" for i in range(9)]
    assert sequential["x"][8] == pytest.approx(2.0)
    assert all(length > 0 for length in sequential["error_x"]["array"])
    assert fixed["error_x"]["array"][0] < sequential["error_x"]["array"][0]


def test_a_means_interval_is_in_its_own_unit() -> None:
    control, treatment = Moments.of([1.0, 2.0, 3.0]), Moments.of([2.0, 3.0, 4.0])
    arms = [
        ArmSummary.of_moments("a", 5_000, control, is_control=True),
        ArmSummary.of_moments("b", 5_000, treatment),
    ]

    figure = interval_figure(analyse(arms, kind="mean").to_json())

    assert figure["data"][0]["x"] == [pytest.approx(1.0)]
    # The sequential interval is silent on so few units: a point, and no bar.
    assert figure["data"][0]["error_x"]["array"] == [0.0]


@pytest.mark.parametrize("stored", [{}, result(n=0)])
def test_without_a_difference_the_figure_says_so(stored: dict[str, Any]) -> None:
    figure = interval_figure(stored)

    assert figure["data"] == []
    assert figure["layout"]["annotations"][0]["text"] == "No difference can be computed yet"


def test_exposures_add_up_in_the_order_of_the_variants() -> None:
    stored = result() | {
        "exposures": {"at_ms": [1, 2, 3], "units": {"t0": [0, 1, 0], "a": [2, 0, 3]}}
    }

    traces = exposure_figure(stored)["data"]

    assert [(trace["name"], trace["y"]) for trace in traces] == [
        ("a", [2, 2, 5]),
        ("t0", [0, 1, 1]),
    ]


def test_twenty_variants_are_told_apart() -> None:
    units = {f"v{i}": [1] for i in range(20)}

    traces = exposure_figure({"exposures": {"at_ms": [1], "units": units}})["data"]

    assert len({(trace["meta"], trace["line"]["dash"]) for trace in traces}) == 20


def test_figures_are_plain_json() -> None:
    for stored in ({}, result(), result(n=0), result(treatments=9)):
        json.dumps([interval_figure(stored), exposure_figure(stored)], allow_nan=False)
