"""Results: the SQL aggregate against plain Python, what counts, and that a good result stays."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from datetime import timedelta

import numpy as np
import pytest

from apps.experiments import results
from apps.experiments.models import Experiment, ExposureRow, Metric, OutcomeRow, RefusedOutcomes
from apps.experiments.results import (
    SERIES_POINTS,
    collect,
    compute_result,
    exposure_series,
    refresh_result,
)
from apps.experiments.services import stop_experiment
from tests.experiments.factories import (
    ANNA,
    NOW,
    expose,
    make_metric,
    make_running,
    observe,
)

pytestmark = pytest.mark.django_db


def fill(experiment: Experiment, units: int = 300, seed: int = 7) -> None:
    """Write random exposures, some crossed over, and outcomes before and after them."""
    dice = random.Random(seed)
    metric = experiment.metric
    for i in range(units):
        row = expose(experiment, f"u{i}", dice.choice(["weak", "strong"]), dice.uniform(0, 100))
        if dice.random() < 0.1:
            row.crossed_over = True
            row.save()
        for k in range(dice.choice([0, 1, 1, 3])):
            is_rate = metric.kind == Metric.Kind.PROPORTION
            value = float(dice.random() < 0.4) if is_rate else 1e9 + dice.gauss(0, 1)
            observe(metric, f"u{i}", value, dice.uniform(0, 200) + k / 1_000)


def by_hand(experiment: Experiment) -> dict[str, list[float]]:
    """Return the units' values per variant, counted row by row."""
    outcomes = defaultdict(list)
    for outcome in OutcomeRow.objects.filter(metric=experiment.metric).order_by("occurred_at"):
        outcomes[outcome.unit].append(outcome)
    values = defaultdict(list)
    for met in ExposureRow.objects.filter(experiment=experiment, crossed_over=False):
        counted = [o.value for o in outcomes[met.unit] if o.occurred_at >= met.at]
        if counted:
            is_rate = experiment.metric.kind == Metric.Kind.PROPORTION
            values[met.variant_name].append(counted[0] if is_rate else float(np.mean(counted)))
    return values


@pytest.mark.parametrize("kind", list(Metric.Kind))
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_aggregate_agrees_with_counting_by_hand(kind: str, seed: int) -> None:
    experiment = make_running(metric=make_metric(kind=kind))
    make_metric("other")
    fill(experiment, seed=seed)

    data = collect(experiment)

    expected = by_hand(experiment)
    assert set(data) == set(expected) == {"weak", "strong"}
    for name, values in expected.items():
        moments = data[name].moments
        assert moments.n == len(values)
        assert moments.mean == pytest.approx(np.mean(values), rel=1e-12)
        # Spread 1 about a mean of 1e9: a sum of squares would have nothing left of it.
        assert moments.m2 == pytest.approx(np.var(values) * len(values), rel=1e-5)


def test_outcomes_before_the_exposure_do_not_count() -> None:
    experiment = make_running()
    expose(experiment, "u", "weak", after_s=10)
    observe(experiment.metric, "u", 1.0, after_s=9.999)
    assert collect(experiment)["weak"].moments.n == 0

    observe(experiment.metric, "u", 1.0, after_s=10)

    assert collect(experiment)["weak"].moments.n == 1


def test_outcomes_of_another_metric_or_unit_do_not_count() -> None:
    experiment = make_running()
    expose(experiment, "u", "weak")
    observe(make_metric("other"), "u", 1.0)
    observe(experiment.metric, "stranger", 1.0)

    assert collect(experiment)["weak"].moments.n == 0


def test_the_first_outcome_decides_a_proportion() -> None:
    experiment = make_running()
    expose(experiment, "u", "weak")
    observe(experiment.metric, "u", 1.0, after_s=2)
    observe(experiment.metric, "u", 0.0, after_s=1)

    assert collect(experiment)["weak"].total == 0.0


def test_a_clear_difference_is_found_and_the_winner_named() -> None:
    experiment = make_running(planned_units=2_000)
    for i in range(1_000):
        variant = "strong" if i % 2 else "weak"
        expose(experiment, f"u{i}", variant)
        observe(experiment.metric, f"u{i}", float(i % 20 != 1 if i % 2 else i % 3 != 0))

    result = compute_result(experiment, NOW).result

    assert result is not None
    assert result["is_significant"]
    assert result["winner"] == "strong"
    assert result["p_value"] < 0.001


def test_without_data_it_says_so_in_plain_json() -> None:
    result = compute_result(make_running(), NOW).result

    assert result is not None
    assert not result["is_significant"]
    assert result["winner"] is None
    assert "NaN" not in json.dumps(result)


def test_quality_tells_what_was_left_out() -> None:
    experiment = make_running()
    expose(experiment, "waiting", "weak")
    expose(experiment, "strange", "gone")
    crossed = expose(experiment, "crossed", "weak")
    ExposureRow.objects.filter(pk=crossed.pk).update(crossed_over=True)
    RefusedOutcomes.objects.create(metric_name="accuracy", reason="why", count=3, last_at=NOW)

    computed = compute_result(experiment, NOW)

    assert computed.result is not None
    assert computed.result["quality"] == {
        "exposed": 2,
        "crossed_over": 1,
        "waiting": 2,
        "unknown_variants": {"gone": 1},
        "refused_outcomes": {"why": 3},
    }


def test_the_series_holds_every_exposure_once() -> None:
    experiment = make_running()
    for i, after_s in enumerate((-5, 0, 1, 30, 59.9, 60)):
        expose(experiment, f"u{i}", "weak", after_s)

    series = exposure_series(experiment, NOW + timedelta(seconds=60))

    assert len(series["at_ms"]) == len(series["units"]["weak"]) == SERIES_POINTS
    assert sum(series["units"]["weak"]) == 6
    assert series["units"]["weak"][0] == 2


def test_the_last_good_result_stays_when_the_analysis_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experiment = make_running()
    refresh_result(experiment, NOW)
    experiment.refresh_from_db()
    good = experiment.result

    def fail(*args: object, **kwargs: object) -> None:
        raise ValueError("cannot be")

    monkeypatch.setattr(results, "analyse", fail)
    refresh_result(experiment, NOW + timedelta(seconds=5))
    experiment.refresh_from_db()

    assert experiment.result == good
    assert experiment.refreshed_at == NOW
    assert experiment.refresh_error == "ValueError: cannot be"


def test_a_completed_result_is_frozen() -> None:
    experiment = make_running()
    stale = Experiment.objects.get(pk=experiment.pk)
    stop_experiment(experiment=experiment, actor=ANNA, now=NOW)
    expose(experiment, "late", "weak")

    refresh_result(stale, NOW + timedelta(hours=1))

    experiment.refresh_from_db()
    assert experiment.refreshed_at == NOW
    assert experiment.result["quality"]["exposed"] == 0
