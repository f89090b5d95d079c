"""Figures: a stored result in, Plotly JSON out, with 0, 1 and 10 variants."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from apps.experiments.charts import (
    distribution_figure,
    exposure_figure,
    interval_figure,
    posterior_figure,
    trend_figure,
)
from apps.experiments.charts.parts import BANDS_MAX, style_of
from apps.experiments.result_tables.wording import Scale
from tests.experiments.stored import (
    NOTHING_SEEN,
    arm,
    comparison,
    guardrail,
    many,
    metric,
    stored_result,
)

RATE, OWN = Scale(is_rate=True), Scale(unit="ms")
NAMES = [f"v{i}" for i in range(10)]
NORMAL = {"chance_to_beat": 0.9, "expected_loss": 0.1, "prior": "N(0, 0.3²) on the relative effect"}


def why(figure: dict[str, Any]) -> str:
    assert figure["data"] == []
    return str(figure["layout"]["annotations"][0]["text"])


def test_a_proportions_interval_is_in_points() -> None:
    sequential, fixed = interval_figure(metric(), RATE)["data"]

    assert (sequential["y"], sequential["x"]) == (["strong"], [pytest.approx(14.0)])
    assert sequential["error_x"]["array"] == [pytest.approx(7.0)]
    assert fixed["error_x"]["array"][0] < sequential["error_x"]["array"][0]


def test_other_intervals_are_in_their_own_unit() -> None:
    figure = interval_figure(metric(kind="mean"), OWN)

    assert figure["data"][0]["x"] == [pytest.approx(0.14)]
    assert figure["layout"]["xaxis"]["title"]["text"] == "ms"


def test_a_missing_interval_is_a_point_without_a_bar() -> None:
    silent = comparison("strong", sequential={"low": None, "high": None})

    figure = interval_figure(metric(comparisons=[silent]), RATE)

    assert figure["data"][0]["error_x"]["array"] == [0.0]


@pytest.mark.parametrize(("direction", "at"), [("increase", -1.0), ("decrease", 1.0)])
def test_a_guardrails_margin_is_on_the_bad_side(direction: str, at: float) -> None:
    figure = interval_figure(guardrail("errors", direction=direction), RATE)

    assert figure["data"][2]["name"] == "margin"
    assert figure["data"][2]["x"] == [pytest.approx(at)]


def test_the_trend_has_a_line_and_a_band_for_each_arm() -> None:
    points = [
        (1, {"strong": [0.1, None, None, 50]}),
        (2, {"strong": [0.12, 0.05, 0.2, 900]}),
    ]

    low, high, line = trend_figure(points, ["weak", "strong"], RATE)["data"]  # type: ignore[arg-type]

    assert line["x"] == low["x"] == [1, 2]
    assert line["y"] == [pytest.approx(10.0), pytest.approx(12.0)]
    assert low["y"] == [None, pytest.approx(5.0)]
    assert high["fill"] == "tonexty"


def test_beyond_a_few_arms_bands_are_hidden_at_first() -> None:
    points = [(1, {name: [0.1, 0.0, 0.2, 9] for name in NAMES[1:]})]

    traces = trend_figure(points, NAMES, RATE)["data"]  # type: ignore[arg-type]

    assert [t["visible"] for t in traces].count(True) == 3 * BANDS_MAX
    assert {t["visible"] for t in traces} == {True, "legendonly"}


def test_exposures_add_up_in_the_order_of_the_variants() -> None:
    traces = exposure_figure(stored_result())["data"]

    assert [(trace["name"], trace["y"]) for trace in traces] == [
        ("weak", [2, 2, 5]),
        ("strong", [0, 1, 1]),
    ]


def test_twenty_variants_have_different_styles() -> None:
    names = [f"v{i}" for i in range(20)]

    styles = [style_of(name, names) for name in names]

    assert len({(style["meta"], style["line"]["dash"]) for style in styles}) == 20


def test_a_distribution_is_in_shares_and_has_its_open_ends() -> None:
    distribution = {"edges": [10.0, 20.0], "counts": {"strong": [1, 2, 1], "weak": [0, 0, 0]}}

    (trace,) = distribution_figure(metric(kind="mean", distribution=distribution), OWN)["data"]

    assert trace["x"] == [0.0, 10.0, 20.0, 30.0]
    assert trace["y"] == [25.0, 50.0, 25.0, 25.0]
    assert trace["text"][:3] == ["below 10 ms", "10 ms to 20 ms", "20 ms or more"]


def test_a_wide_distribution_is_on_a_logarithmic_axis() -> None:
    distribution = {"edges": [1.0, 100.0, 10_000.0], "counts": {"strong": [1, 2, 3, 4]}}

    figure = distribution_figure(metric(kind="mean", distribution=distribution), Scale())

    assert figure["layout"]["xaxis"]["type"] == "log"
    assert figure["data"][0]["x"] == pytest.approx([0.01, 1.0, 100.0, 10_000.0, 1e6])


def test_a_proportions_distribution_is_two_bars_for_each_arm() -> None:
    weak, _ = distribution_figure(metric(), RATE)["data"]

    assert (weak["type"], weak["x"], weak["y"]) == ("bar", ["0", "1"], [20.0, 80.0])


def test_rates_have_a_posterior_for_each_arm_that_integrates_to_one() -> None:
    traces = posterior_figure(metric(), RATE)["data"]

    assert [trace["name"] for trace in traces] == ["weak", "strong"]
    for trace in traces:
        step = trace["x"][1] - trace["x"][0]
        assert sum(trace["y"]) * step == pytest.approx(1.0, rel=1e-3)
    assert len(traces[0]["x"]) <= 200


@pytest.mark.parametrize(("n", "mean"), [(10**8, 0.5), (1, 0.0), (3, 1.0)])
def test_a_posterior_is_finite_for_any_data(n: int, mean: float) -> None:
    arms = [arm("weak", is_control=True, n=n, mean=mean), arm("strong", n=n, mean=mean)]

    figure = posterior_figure(metric(arms=arms), RATE)

    assert all(math.isfinite(y) for trace in figure["data"] for y in trace["y"])


def test_a_prior_shrinks_a_difference_towards_0() -> None:
    compared = comparison("strong", difference=30.0, standard_error=30.0, bayes=NORMAL)
    arms = [arm("weak", is_control=True, mean=100.0), arm("strong", mean=130.0)]

    (trace,) = posterior_figure(metric(arms=arms, comparisons=[compared]), Scale())["data"]

    peak = max(range(len(trace["y"])), key=trace["y"].__getitem__)
    assert trace["x"][peak] == pytest.approx(15.0, abs=0.1)


def test_an_empty_figure_says_why() -> None:
    (nothing,) = NOTHING_SEEN["metrics"]

    assert why(interval_figure(nothing, RATE)) == "No difference can be computed yet"
    assert why(interval_figure({}, RATE)) == "No difference can be computed yet"
    assert why(trend_figure([], [], RATE)) == "No difference has been computed yet"
    assert why(exposure_figure({})) == "No exposures yet"
    assert "no values yet" in why(distribution_figure(nothing, RATE))
    assert "a ratio is computed from sums" in why(distribution_figure(metric(kind="ratio"), RATE))
    assert "No Bayesian estimate" in why(posterior_figure(nothing, RATE))


def test_figures_are_plain_json() -> None:
    for result in (NOTHING_SEEN, stored_result(), many()):
        for entry in result["metrics"]:
            figures = [interval_figure(entry, RATE), distribution_figure(entry, RATE)]
            figures += [posterior_figure(entry, RATE), exposure_figure(result)]
            json.dumps(figures, allow_nan=False)
