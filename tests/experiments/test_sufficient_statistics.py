"""Units' values and statistics in SQL equal those in plain Python, for each kind of metric."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from apps.experiments.models import Experiment, ExposureRow, MeasuredUnit, Metric, WeightChange
from apps.experiments.services import MetricChoice
from apps.experiments.stats.comoments import Comoments, Extremes
from apps.experiments.stats.comparison import State
from apps.experiments.stats.data import Stratum
from apps.experiments.stats.quantiles import order_statistics_of
from apps.experiments.stats.report import make_report
from apps.experiments.sufficient_statistics import ExperimentStatistics, collect_statistics
from apps.experiments.unit_values import fold_all
from contract.bucketing import bucket
from tests.experiments.factories import NOW, expose, make_metric, make_running, observe

pytestmark = pytest.mark.django_db

LATER = NOW + timedelta(seconds=1_000)
Outcomes = dict[str, list[tuple[float, float]]]


def metric_of(name: str = "m", kind: str = "mean", **fields: Any) -> Metric:
    return Metric.objects.create(name=name, kind=kind, **fields)


def running(metric: Metric, **fields: Any) -> Experiment:
    return make_running(metrics=[MetricChoice(metric)], **fields)


def fill(experiment: Experiment, sent: Metric, seed: int, binary: bool = False) -> Outcomes:
    """Write random units and outcomes before and after their exposures; return the outcomes."""
    dice = random.Random(seed)
    outcomes: Outcomes = {}
    for i in range(120):
        unit, at = f"u{i}", dice.uniform(0, 100)
        expose(experiment, unit, dice.choice(["weak", "strong"]), at, crossed_over=i % 11 == 0)
        rows = []
        for k in range(dice.choice([0, 1, 1, 3])):
            value = float(dice.random() < 0.4) if binary else 1e6 + dice.gauss(0, 1)
            when = dice.uniform(0, 200) + k / 1_000
            observe(sent, unit, value, when)
            rows.append((when, value))
        outcomes[unit] = sorted(rows)
    return outcomes


@pytest.fixture(autouse=True)
def exact_clocks(settings: Any) -> None:
    """Disable the clock skew, so that counts by hand start at the exposure."""
    settings.OUTCOME_CLOCK_SKEW_S = 0


def statistics_of(experiment: Experiment, now: Any = LATER) -> ExperimentStatistics:
    fold_all()
    return collect_statistics(experiment, now)


def by_hand(
    experiment: Experiment,
    outcomes: Outcomes,
    value: Callable[[list[tuple[float, float]], float], tuple[float, ...] | None],
) -> dict[str, Comoments]:
    """Return each arm's co-moments, computed unit by unit."""
    rows: dict[str, list[tuple[float, ...]]] = {}
    for met in ExposureRow.objects.filter(experiment=experiment, crossed_over=False):
        at = (met.at - NOW).total_seconds()
        counted = value(outcomes[met.unit], at)
        if counted is not None:
            rows.setdefault(met.variant_name, []).append(counted)
    return {name: Comoments.of(np.array(values)) for name, values in rows.items()}


def agree(statistics: ExperimentStatistics, expected: dict[str, Comoments], place: int = 0) -> None:
    for name, reference in expected.items():
        actual = statistics.data.metrics[place].arms[name].comoments
        assert actual.n == reference.n
        assert actual.means == pytest.approx(reference.means, rel=1e-12)
        assert actual.products == pytest.approx(reference.products, rel=1e-6, abs=1e-6)
        assert actual.thirds == pytest.approx(reference.thirds, rel=1e-6, abs=1e-6)
        assert actual.extremes == reference.extremes


RULES: dict[str, Callable[[list[float]], float]] = {
    "first": lambda values: values[0],
    "mean": lambda values: float(np.mean(values)),
    "sum": lambda values: float(np.sum(values)),
    "max": max,
}


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_units_outcomes_make_its_value_by_the_metrics_rule(rule: str) -> None:
    metric = metric_of(per_unit=rule)
    experiment = running(metric)
    outcomes = fill(experiment, metric, seed=1)

    def value(rows: list[tuple[float, float]], at: float) -> tuple[float, ...] | None:
        after = [v for when, v in rows if when >= at]
        return (RULES[rule](after),) if after else None

    agree(statistics_of(experiment), by_hand(experiment, outcomes, value))


def test_a_proportion_takes_the_first_outcome() -> None:
    metric = metric_of(kind="proportion")
    experiment = running(metric)
    outcomes = fill(experiment, metric, seed=2, binary=True)

    def value(rows: list[tuple[float, float]], at: float) -> tuple[float, ...] | None:
        after = [v for when, v in rows if when >= at]
        return (after[0],) if after else None

    agree(statistics_of(experiment), by_hand(experiment, outcomes, value))


def test_with_a_window_only_units_whose_window_is_over_count_and_missing_is_zero() -> None:
    metric = metric_of(per_unit="sum", window_s=60, missing_is_zero=True, cap=1e6 + 0.5)
    experiment = running(metric)
    outcomes = fill(experiment, metric, seed=3)
    now = NOW + timedelta(seconds=110)

    def value(rows: list[tuple[float, float]], at: float) -> tuple[float, ...] | None:
        if at + 60 > 110:
            return None
        return (min(1e6 + 0.5, sum(v for when, v in rows if at <= when < at + 60)),)

    agree(statistics_of(experiment, now), by_hand(experiment, outcomes, value))


def test_a_ratio_sums_both_of_its_outcomes() -> None:
    below = metric_of("sessions")
    metric = metric_of("per-session", kind="ratio", divided_by=below)
    experiment = running(metric)
    outcomes = fill(experiment, below, seed=4)
    expose(experiment, "both", "weak")
    observe(metric, "both", 7.0, 1.0)
    observe(metric, "both", 1.0, 2.0)
    observe(below, "both", 4.0, 1.0)
    outcomes["both"] = [(1.0, 4.0)]

    def value(rows: list[tuple[float, float]], at: float) -> tuple[float, ...] | None:
        after = [v for when, v in rows if when >= at]
        return (8.0 if after == [4.0] else 0.0, sum(after)) if after else None

    agree(statistics_of(experiment), by_hand(experiment, outcomes, value))


def test_a_covariate_is_the_time_before_the_exposure() -> None:
    metric = metric_of(per_unit="sum")
    experiment = running(metric, covariate_s=50)
    outcomes = fill(experiment, metric, seed=5)

    def value(rows: list[tuple[float, float]], at: float) -> tuple[float, ...] | None:
        after = [v for when, v in rows if when >= at]
        before = sum(v for when, v in rows if at - 50 <= when < at)
        return (sum(after), before) if after else None

    agree(statistics_of(experiment), by_hand(experiment, outcomes, value))


def test_a_quantile_has_its_order_statistics() -> None:
    metric = metric_of(kind="quantile", quantile_ppm=750_000)
    experiment = running(metric)
    fill(experiment, metric, seed=6)

    arm = statistics_of(experiment).data.metrics[0].arms["weak"]

    values = ExposureRow.objects.filter(variant_name="weak", crossed_over=False)
    ordered = sorted(row.values[0] for row in values if row.values[0] is not None)
    assert arm.order == order_statistics_of(np.array(ordered), 0.75)


def test_what_the_data_plane_measured_is_per_unit() -> None:
    slow = metric_of("slow", kind="ratio", source="latency", direction="decrease")
    failing = metric_of("failing", kind="proportion", source="errors", direction="decrease")
    choices = [MetricChoice(slow), MetricChoice(failing, "secondary")]
    experiment = make_running(metrics=choices)
    for unit, counts in {"a": (10, 1, 2, 70_000), "b": (4, 0, 0, 8_000)}.items():
        expose(experiment, unit, "weak")
        row = dict(zip(("requests", "errors", "cache_hits", "latency_us"), counts, strict=True))
        MeasuredUnit.objects.create(experiment=experiment, unit=unit, **row)

    statistics = statistics_of(experiment)

    agree(statistics, {"weak": Comoments.of([[70.0, 7.0], [8.0, 4.0]])})
    agree(statistics, {"weak": Comoments.of([[1.0], [0.0]])}, place=1)


def test_units_whose_bucket_moved_are_excluded_whether_or_not_they_returned() -> None:
    metric = make_metric()
    experiment = running(metric)
    for i in range(60):
        expose(experiment, f"old{i}", "weak", 1)
    at = NOW + timedelta(seconds=10)
    WeightChange.objects.create(
        experiment=experiment, at=at, weights_bp={"weak": 2_000, "strong": 8_000}, actor="anna"
    )
    expose(experiment, "new", "weak", 20)

    statistics = statistics_of(experiment)

    stayed = sum(
        row.bucket < 2_000 or row.bucket >= 5_000 for row in ExposureRow.objects.filter(at__lt=at)
    )
    assert statistics.moved == 60 - stayed
    assert [phase.units["weak"] for phase in statistics.data.phases] == [stayed, 1]
    first, second = (phase.shares for phase in statistics.data.phases)
    assert first == pytest.approx({"weak": 2 / 7, "strong": 5 / 7})
    assert second == pytest.approx({"weak": 0.2, "strong": 0.8})


def test_units_exposed_while_a_change_takes_effect_are_in_no_arm() -> None:
    """A data plane may send units to a variant for some seconds after its weight became 0."""
    metric = make_metric()
    experiment = running(metric)
    change, buckets = 60, {}
    for at_s in (1, change, change + 3, change + 9.9, change + 20):
        for i in range(20):
            unit = f"u{at_s}-{i}"
            arm = "weak" if bucket(experiment.variant_salt, unit) < 5_000 else "strong"
            is_settled = at_s >= change + 10
            buckets[unit] = expose(experiment, unit, "weak" if is_settled else arm, at_s).bucket
    WeightChange.objects.create(
        experiment=experiment, at=NOW + timedelta(seconds=change), actor="anna",
        weights_bp={"weak": 10_000, "strong": 0},
    )  # fmt: skip

    statistics = statistics_of(experiment)
    report = make_report(statistics.data, alpha=0.05, planned_units=1_000)

    stayed = sum(place < 5_000 for unit, place in buckets.items() if unit.startswith("u1-"))
    assert [phase.units for phase in statistics.data.phases] == [
        {"weak": stayed, "strong": 0}, {"weak": 20, "strong": 0},
    ]  # fmt: skip
    assert statistics.moved == 80 - stayed
    assert report.sample_ratio.state is not State.UNEXPECTED_UNITS


def test_levels_of_a_dimension_divide_the_arms() -> None:
    metric = metric_of()
    experiment = running(metric, dimensions=["x-country"], stratify_by="x-country")
    for i in range(40):
        extra = {"attributes": {"x-country": "ch"}} if i % 3 else {}
        expose(experiment, f"u{i}", "weak" if i % 2 else "strong", 0, **extra)
        observe(metric, f"u{i}", float(i), 1)

    metric_data = statistics_of(experiment).data.metrics[0]

    levels = metric_data.breakdowns["x-country"]
    assert set(levels) == {"ch", "(none)"}
    for name, arm in metric_data.arms.items():
        merged = levels["ch"][name].comoments.merge(levels["(none)"][name].comoments)
        assert merged.n == arm.comoments.n == 20
        assert merged.products == pytest.approx(arm.comoments.products)
        assert arm.strata == {Stratum(0, level): levels[level][name].comoments for level in levels}


def test_held_out_units_are_in_no_arm_and_shown_separately() -> None:
    metric = metric_of()
    experiment = running(metric, holdout_bp=500)
    expose(experiment, "u", "holdout")
    observe(metric, "u", 4.0, 1)

    statistics = statistics_of(experiment)

    assert statistics.holdout_units == 1
    assert statistics.holdout["m"].means == (4.0,)
    assert statistics.data.exposed == {"weak": 0, "strong": 0}
    assert statistics.unknown_variants == {}


def test_an_earlier_exposure_that_arrives_late_recomputes_the_values() -> None:
    metric = metric_of()
    experiment = running(metric)
    expose(experiment, "u", "weak", 10)
    observe(metric, "u", 4.0, 5)
    assert statistics_of(experiment).data.metrics[0].arms["weak"].comoments.n == 0

    row = ExposureRow.objects.filter(experiment=experiment, unit="u")
    row.update(at=NOW)
    observe(metric, "u", 6.0, 20)

    assert statistics_of(experiment).data.metrics[0].arms["weak"].comoments.means == (5.0,)


def test_an_outcome_counts_though_its_clock_puts_it_a_little_before_the_exposure(
    settings: Any,
) -> None:
    settings.OUTCOME_CLOCK_SKEW_S = 5
    metric = metric_of(per_unit="sum")
    experiment = running(metric, covariate_s=50)
    expose(experiment, "u", "weak", 100)
    for after_s, value in ((94.99, 1.0), (95.0, 2.0), (101.0, 4.0), (44.99, 8.0)):
        observe(metric, "u", value, after_s)

    (moments,) = (m.arms["weak"].comoments for m in statistics_of(experiment).data.metrics)

    # Outcomes older than the tolerance belong to the covariate, over the same length of time.
    assert moments.means == (6.0, 1.0)


def test_units_are_counted_by_the_phase_in_which_they_were_exposed() -> None:
    metric, middle = metric_of(), metric_of("middle", kind="quantile", quantile_ppm=500_000)
    choices = [MetricChoice(metric), MetricChoice(middle, "secondary")]
    experiment = make_running(metrics=choices, dimensions=["x-country"])
    at = NOW + timedelta(seconds=10)
    WeightChange.objects.create(
        experiment=experiment, at=at, weights_bp={"weak": 4_999, "strong": 5_001}, actor="anna"
    )
    for i in range(40):
        # Outcomes of the first phase also come after the change.
        expose(experiment, f"u{i}", "weak", 1 if i < 10 else 20, attributes={"x-country": "ch"})
        observe(metric, f"u{i}", float(i), 30)
        observe(middle, f"u{i}", float(i), 30)

    data = statistics_of(experiment).data
    mean, quantile = (m.arms["weak"] for m in data.metrics)

    moved = sum(4_999 <= row.bucket < 5_000 for row in ExposureRow.objects.filter(at__lt=at))
    assert {at.phase: units.n for at, units in mean.strata.items()} == {0: 10 - moved, 1: 30}
    by_level = data.metrics[0].breakdowns["x-country"]["ch"]["weak"]
    assert {at.phase: units.n for at, units in by_level.strata.items()} == {0: 10 - moved, 1: 30}
    assert mean.strata[Stratum(1)].means == (24.5,)
    assert quantile.order is not None
    assert (quantile.order.n, quantile.order.value) == (30, 24.0)
    assert [phase.weights_bp["weak"] for phase in data.phases] == [5_000, 4_999]


def test_values_at_the_ends_of_floats_have_third_moments() -> None:
    """PostgreSQL rejects a product that overflows or underflows; a result must not fail."""
    metric = metric_of(per_unit="sum")
    experiment = running(metric)
    for i, value in enumerate((1e100, -1e100, 1e-120, 0.0, 3.0)):
        for k in range(3):
            expose(experiment, f"u{i}-{k}", "weak")
            observe(metric, f"u{i}-{k}", value)

    comoments = statistics_of(experiment).data.metrics[0].arms["weak"].comoments

    assert comoments.n == 15
    assert all(math.isfinite(third) for third in comoments.thirds)
    assert comoments.extremes == Extremes(12, -1e100, 1e100)
