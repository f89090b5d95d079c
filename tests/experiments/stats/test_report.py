"""Reports of several metrics and arms: families, guardrails, degenerate data, no NaN."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.data import (
    ArmData,
    ArmSpec,
    ExperimentData,
    MetricData,
    MetricSpec,
    Phase,
    Stratum,
)
from apps.experiments.stats.quantiles import order_statistics_of
from apps.experiments.stats.report import Report, make_report

RATE = MetricSpec("clicked", "primary", "proportion")
SPEED = MetricSpec("latency", "guardrail", "mean", is_increase_better=False, margin=1.0)


def rate(n: int, events: int) -> ArmData:
    share = events / n if n else 0.0
    return ArmData(Comoments(n, (share,), (events * (1.0 - share),)))


def mean(n: int, value: float, sd: float = 1.0) -> ArmData:
    return ArmData(Comoments(n, (value,), (sd * sd * max(0, n - 1),)))


def experiment(*metrics: MetricData, names: tuple[str, ...] = ("a", "b")) -> ExperimentData:
    weight = 10_000 // len(names)
    arms = tuple(ArmSpec(name, weight, is_control=i == 0) for i, name in enumerate(names))
    units = {n: max([m.arms[n].comoments.n for m in metrics if n in m.arms] + [0]) for n in names}
    shares = dict.fromkeys(names, 1.0 / len(names))
    return ExperimentData(arms, units, (Phase(units, shares),), metrics)


def report(*metrics: MetricData, names: tuple[str, ...] = ("a", "b"), **overrides: Any) -> Report:
    options: dict[str, Any] = {"alpha": 0.05, "planned_units": 10_000}
    return make_report(experiment(*metrics, names=names), **(options | overrides))


def test_a_clear_difference_of_rates_is_better_and_says_so() -> None:
    result = report(MetricData(RATE, {"a": rate(3_000, 300), "b": rate(3_000, 450)}))

    assert (result.primary.winner, result.primary.comparisons[0].outcome) == ("b", "better")
    assert result.verdict.startswith("b is better than a: 15% against 10%")
    assert result.primary.comparisons[0].bayes is not None
    assert result.primary.comparisons[0].bayes.chance_to_beat > 0.999


def test_a_guardrail_that_is_worse_is_in_the_verdict() -> None:
    result = report(
        MetricData(RATE, {"a": rate(3_000, 300), "b": rate(3_000, 450)}),
        MetricData(SPEED, {"a": mean(3_000, 10.0), "b": mean(3_000, 13.0)}),
    )

    judged = result.metrics[1].comparisons[0].non_inferiority
    assert judged is not None
    assert (judged.state, judged.deteriorated) == ("worse", True)
    assert "guardrail latency is worse with b: do not ship it" in result.verdict


def test_a_guardrail_within_its_margin_is_not_worse() -> None:
    result = report(
        MetricData(RATE, {"a": rate(3_000, 300), "b": rate(3_000, 300)}),
        MetricData(SPEED, {"a": mean(3_000, 10.0), "b": mean(3_000, 10.1)}),
    )

    judged = result.metrics[1].comparisons[0].non_inferiority
    assert judged is not None
    assert judged.state == "not-worse"
    assert judged.bound is not None
    assert -1.0 < judged.bound < -0.1


def test_holm_reads_the_second_best_arm_less_strictly() -> None:
    arms = {"a": rate(3_000, 300), "b": rate(3_000, 450), "c": rate(3_000, 380)}
    result = report(MetricData(RATE, arms), names=("a", "b", "c"))

    by_arm = {c.arm: c for c in result.primary.comparisons}
    assert by_arm["b"].sequential.alpha == pytest.approx(0.0125)
    assert by_arm["c"].sequential.alpha == pytest.approx(0.025)


def test_a_mismatch_of_shares_stops_every_verdict() -> None:
    data = MetricData(RATE, {"a": rate(3_000, 300), "b": rate(2_000, 450)})
    second = MetricData(replace(RATE, name="other", role="secondary"), data.arms)
    result = report(data, second)

    assert [m.state for m in result.metrics] == ["srm", "srm"]
    assert not any(m.is_significant for m in result.metrics)
    assert "find the cause" in result.verdict


@pytest.mark.parametrize(
    ("spec", "a", "b", "state"),
    [
        (RATE, rate(0, 0), rate(0, 0), "not-enough-data"),
        (RATE, rate(1, 1), rate(1, 0), "not-enough-data"),
        (RATE, rate(500, 0), rate(500, 0), "no-variance"),
        (RATE, rate(500, 600), rate(500, 1), "invalid-data"),
        (RATE, mean(500, math.nan), rate(500, 1), "invalid-data"),
        (replace(RATE, kind="mean"), mean(500, 1.0, 0.0), mean(500, 2.0, 0.0), "no-variance"),
        (replace(RATE, kind="mean"), mean(2, 1.0), mean(2, 1.0), "not-enough-data"),
        (replace(RATE, kind="mean"), mean(500, math.inf), mean(500, 1.0), "invalid-data"),
    ],
)
def test_degenerate_data_has_a_name_and_no_winner(
    spec: MetricSpec, a: ArmData, b: ArmData, state: str
) -> None:
    document = report(MetricData(spec, {"a": a, "b": b})).to_json()

    assert (document["state"], document["winner"], document["is_significant"]) == (
        state,
        None,
        False,
    )
    json.dumps(document, allow_nan=False)


def test_an_arm_without_units_is_named() -> None:
    document = report(MetricData(RATE, {"a": rate(0, 0)})).to_json()

    assert document["metrics"][0]["arms"][1]["mean"] is None
    assert document["metrics"][0]["comparisons"][0]["state"] == "not-enough-data"


def test_a_large_mean_with_a_small_spread_is_exact() -> None:
    n, spec = 100_000_000, replace(RATE, kind="mean")
    arms = {"a": mean(n, 1e9), "b": mean(n, 1e9 + 0.001)}
    comparison = report(MetricData(spec, arms), planned_units=2 * n).primary.comparisons[0]

    assert comparison.difference == pytest.approx(0.001, rel=1e-4)
    # The rounding error of the mean is part of its standard error.
    assert comparison.standard_error == pytest.approx(math.sqrt(2 / n), rel=1e-4)
    assert comparison.outcome == "better"


def test_a_ratio_is_judged_by_the_delta_method() -> None:
    rng = np.random.default_rng(1)
    spec = replace(RATE, kind="ratio")
    arms = {}
    for name, level in (("a", 2.0), ("b", 2.2)):
        d = rng.poisson(5, 4_000) + 1.0
        y = level * d + rng.normal(0, 1, 4_000)
        arms[name] = ArmData(Comoments.of(np.column_stack([y, d])))
    comparison = report(MetricData(spec, arms)).primary.comparisons[0]

    assert (comparison.test, comparison.outcome) == ("delta", "better")
    assert comparison.difference == pytest.approx(0.2, abs=0.02)


def test_a_covariate_reduces_variance() -> None:
    rng = np.random.default_rng(2)
    spec = replace(RATE, kind="mean", has_covariate=True)
    arms = {}
    for name, shift in (("a", 0.0), ("b", 0.1)):
        x = rng.normal(10, 2, 2_000)
        arms[name] = ArmData(Comoments.of(np.column_stack([x + rng.normal(shift, 0.5, 2_000), x])))
    comparison = report(MetricData(spec, arms)).primary.comparisons[0]

    assert comparison.variance_reduction == pytest.approx(16 / 17, abs=0.01)
    assert comparison.is_significant


def test_a_quantile_is_judged_by_its_order_statistics() -> None:
    rng = np.random.default_rng(3)
    spec = replace(RATE, kind="quantile", quantile=0.9)
    arms = {}
    for name, scale in (("a", 1.0), ("b", 1.3)):
        values = np.sort(rng.exponential(scale, 4_000))
        arms[name] = ArmData(Comoments(4_000, (0.0,), (0.0,)), order_statistics_of(values, 0.9))
    comparison = report(MetricData(spec, arms)).primary.comparisons[0]

    assert comparison.outcome == "better"
    assert comparison.difference == pytest.approx(0.3 * math.log(10), abs=0.15)


def test_strata_remove_a_random_imbalance() -> None:
    spec = replace(RATE, kind="mean")
    a = {"old": Comoments(700, (1.0,), (700.0,)), "new": Comoments(300, (5.0,), (300.0,))}
    b = {"old": Comoments(300, (1.0,), (300.0,)), "new": Comoments(700, (5.0,), (700.0,))}
    arms = {
        name: ArmData(
            strata["old"].merge(strata["new"]),
            strata={Stratum(level=level): units for level, units in strata.items()},
        )
        for name, strata in (("a", a), ("b", b))
    }
    comparison = report(MetricData(spec, arms)).primary.comparisons[0]

    assert comparison.difference == pytest.approx(0.0, abs=1e-12)
    assert comparison.outcome == "undecided"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5_000), st.floats(0, 1)), min_size=2, max_size=4),
    st.booleans(),
)
def test_for_any_counts_intervals_agree_and_no_number_is_nan(
    drawn: list[tuple[int, float]], is_final: bool
) -> None:
    names = tuple("abcd"[: len(drawn)])
    arms = {name: rate(n, round(n * share)) for name, (n, share) in zip(names, drawn, strict=True)}
    result = report(MetricData(RATE, arms), names=names, is_final=is_final, planned_units=100)

    json.dumps(result.to_json(), allow_nan=False)
    for compared in result.primary.comparisons:
        low, high = compared.reading.low, compared.reading.high
        if compared.is_significant:
            assert low is not None
            assert high is not None
            assert low > 0 or high < 0
