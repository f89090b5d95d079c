"""Quantiles of rounded values with many ties, in two equal arms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.data import (
    ArmData,
    ArmSpec,
    ExperimentData,
    MetricData,
    MetricSpec,
    Phase,
)
from apps.experiments.stats.quantiles import order_statistics_of
from apps.experiments.stats.report import Report, make_report

Floats = NDArray[np.float64]
ARMS = (ArmSpec("old", 5_000, is_control=True), ArmSpec("new", 5_000))


def stars(rng: np.random.Generator, n: int) -> Floats:
    return rng.choice(np.arange(1.0, 6.0), n, p=[0.1, 0.1, 0.3, 0.3, 0.2])


def latency(rng: np.random.Generator, n: int) -> Floats:
    return np.round(rng.lognormal(2.0, 0.5, n)) * 10.0


def poisson(rng: np.random.Generator, n: int) -> Floats:
    return rng.poisson(3.0, n).astype(float)


def result(arms: dict[str, Floats], quantile: float, *, margin: float | None = None) -> Report:
    """Return the result at the planned end; with a margin the quantile is a guardrail too."""
    specs = [MetricSpec("value", "primary", "quantile", quantile=quantile)]
    if margin is not None:
        specs.append(MetricSpec("kept", "guardrail", "quantile", margin=margin, quantile=quantile))
    known = {
        name: ArmData(Comoments.of(values[:, None]), order_statistics_of(np.sort(values), quantile))
        for name, values in arms.items()
    }
    units = {name: len(values) for name, values in arms.items()}
    data = ExperimentData(
        ARMS, units, (Phase(units, dict.fromkeys(units, 0.5)),),
        tuple(MetricData(spec, known) for spec in specs),
    )  # fmt: skip
    return make_report(data, alpha=0.05, planned_units=sum(units.values()), is_final=True)


@pytest.mark.parametrize(
    ("draw", "quantile"), [(stars, 0.5), (latency, 0.9), (poisson, 0.99)],
    ids=["stars", "latency", "poisson"],
)  # fmt: skip
def test_two_equal_arms_have_no_winner(
    draw: Callable[[np.random.Generator, int], Floats], quantile: float
) -> None:
    rng, runs = np.random.default_rng(11), 300
    wins = sum(
        result({"old": draw(rng, 2_000), "new": draw(rng, 2_000)}, quantile).primary.is_significant
        for _ in range(runs)
    )

    # 2.5 % are allowed: 7.5 of 300, with a standard error of 2.7.
    assert wins <= 7.5 + 2 * 2.7


def test_a_result_has_the_share_of_values_equal_to_the_quantile() -> None:
    four = np.repeat([1.0, 2.0, 3.0, 4.0, 5.0], [100, 100, 310, 380, 110])
    arms = {"old": four, "new": four.copy()}
    # The share of values up to 3 is just above one half in one arm, just below in the other.
    arms["new"][:120] = 5.0

    report = result(arms, 0.5, margin=0.5)

    compared = report.primary.comparisons[0]
    assert (compared.outcome, compared.state) == ("undecided", "ok")
    assert compared.reason == "34 % of the values equal their arm's quantile"
    assert "No difference between new and old is shown at the planned size: 34 %" in report.verdict
    assert compared.bayes is None
    guarded = report.metrics[1].comparisons[0].non_inferiority
    assert guarded is not None


def test_a_median_that_moved_by_a_whole_star_is_significant() -> None:
    old = np.repeat([1.0, 2.0, 3.0, 4.0, 5.0], [100, 100, 500, 200, 100])
    new = np.repeat([1.0, 2.0, 3.0, 4.0, 5.0], [100, 100, 200, 500, 100])

    compared = result({"old": old, "new": new}, 0.5).primary.comparisons[0]

    assert compared.outcome == "better"
    assert (compared.fixed.low, compared.fixed.high) == (1.0, 1.0)


def test_arms_with_the_same_median_are_within_any_margin() -> None:
    values = np.repeat([1.0, 2.0, 3.0], [100, 800, 100])

    report = result({"old": values, "new": values}, 0.5, margin=0.1).metrics[1]

    guarded = report.comparisons[0].non_inferiority
    assert guarded is not None
    assert (guarded.state, guarded.bound) == ("not-worse", 0.0)
    assert report.comparisons[0].reason == "80 % of the values equal the quantile"
