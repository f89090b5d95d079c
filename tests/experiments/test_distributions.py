"""Order statistics are exact for any sample; counts cover all selected units."""

from __future__ import annotations

import random

import numpy as np
import pytest

from apps.experiments import distributions
from apps.experiments.models import Experiment, ExposureRow, Metric
from apps.experiments.results import compute_result
from apps.experiments.services import MetricChoice
from apps.experiments.stats.quantiles import order_statistics_of
from apps.experiments.sufficient_statistics import ExperimentStatistics, collect_statistics
from tests.experiments.factories import NOW, make_running

pytestmark = pytest.mark.django_db
UNITS = 1_500


def filled(values: list[float], **use: bool) -> Experiment:
    """Return an experiment whose units have these values of a 90 % quantile and a mean."""
    quantile = Metric.objects.create(name="p90", kind="quantile", quantile_ppm=900_000)
    mean = Metric.objects.create(name="mean", kind="mean", outcomes_of=quantile)
    choices = [MetricChoice(quantile), MetricChoice(mean, "secondary", **use)]
    experiment = make_running(metrics=choices)
    ExposureRow.objects.bulk_create(
        ExposureRow(
            experiment=experiment, unit=f"u{i}", variant_name=("weak", "strong")[i % 2],
            version_number="1", at=NOW, bucket=i % 2 * 5_000 + i % 97, values=[value, value],
        )
        for i, value in enumerate(values)
    )  # fmt: skip
    return experiment


def check(statistics: ExperimentStatistics, values: list[float]) -> None:
    for at, arm in enumerate(("weak", "strong")):
        expected = sorted(values[at::2])
        order = statistics.data.metrics[0].arms[arm].order
        assert order == order_statistics_of(np.array(expected), 0.9)


@pytest.mark.parametrize("reach", [6.0, 0.0], ids=["enclosed", "missed"])
@pytest.mark.parametrize("digits", [6, 1, 0], ids=["distinct", "ties", "many-ties"])
def test_a_quantiles_ranks_are_those_of_all_values(
    monkeypatch: pytest.MonkeyPatch, digits: int, reach: float
) -> None:
    dice = random.Random(digits)
    values = [round(dice.gauss(0, 1), digits) for _ in range(UNITS)]
    experiment = filled(values)
    check(collect_statistics(experiment, NOW), values)
    monkeypatch.setattr(distributions, "SORTED_MAX", 200)
    monkeypatch.setattr(distributions, "REACH", reach)

    check(collect_statistics(experiment, NOW), values)


def test_a_large_mean_with_a_small_spread_keeps_its_digits() -> None:
    values = [1e9 + i % 3 for i in range(UNITS)]

    comoments = collect_statistics(filled(values), NOW).data.metrics[1].arms["weak"].comoments

    assert comoments.n == UNITS / 2
    assert comoments.means[0] == 1e9 + 1
    assert comoments.covariance(0, 0) == pytest.approx(
        2 / 3 * comoments.n / (comoments.n - 1), rel=1e-9
    )


def test_charts_take_some_units_and_mann_whitney_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributions, "DRAWN_MAX", UNITS // 10)
    statistics = collect_statistics(
        filled([float(i) for i in range(UNITS)], mann_whitney=True), NOW
    )
    drawn, whole = (sum(metric.arms["weak"].counts) for metric in statistics.data.metrics)

    assert 0 < drawn < UNITS / 4
    assert whole == UNITS / 2


def test_a_result_of_rounded_values_says_how_many_are_equal_to_the_quantile() -> None:
    dice = random.Random(3)
    values = [float(dice.choice([1, 2, 3, 4, 4, 5, 5])) for _ in range(UNITS)]

    result = compute_result(filled(values), NOW).result

    assert result is not None
    compared = result["metrics"][0]["comparisons"][0]
    share = sum(value == 5.0 for value in values) / UNITS
    assert compared["reason"] == f"{share * 100:.2g} % of the values equal the quantile"
    assert (compared["outcome"], compared["standard_error"]) == ("undecided", None)
    assert (compared["sequential"]["low"], compared["sequential"]["high"]) == (0.0, 0.0)
    assert compared["reason"] in result["verdict"]
