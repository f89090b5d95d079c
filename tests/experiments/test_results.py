"""Results: their contents, that a good one stays, and when the final one is frozen."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections

from apps.experiments import results
from apps.experiments.models import ExposureRow, RefusedOutcomes
from apps.experiments.postgres import Postgres
from apps.experiments.results import (
    LATE_ARRIVALS,
    POINTS_MAX,
    SERIES_POINTS,
    _add_point,
    compute_result,
    exposure_series,
    finalise_result,
    refresh_result,
)
from apps.experiments.services import stop_experiment
from apps.experiments.unit_values import fold_all
from tests.experiments.factories import (
    ANNA,
    NOW,
    expose,
    make_running,
    observe,
)

pytestmark = pytest.mark.django_db


def test_a_clear_difference_is_found_and_the_winner_named() -> None:
    experiment = make_running(planned_units=2_000)
    for i in range(1_000):
        variant = "strong" if i % 2 else "weak"
        expose(experiment, f"u{i}", variant)
        observe(experiment.metric, f"u{i}", float(i % 20 != 1 if i % 2 else i % 3 != 0))

    fold_all()
    result = compute_result(experiment, NOW).result

    assert result is not None
    assert result["is_significant"]
    assert result["winner"] == "strong"
    assert result["metrics"][0]["comparisons"][0]["p_holm"] < 0.001


def test_a_result_without_data_is_valid_json() -> None:
    result = compute_result(make_running(), NOW).result

    assert result is not None
    assert not result["is_significant"]
    assert result["winner"] is None
    assert "NaN" not in json.dumps(result)


def test_quality_holds_counts_of_excluded_data() -> None:
    experiment = make_running()
    expose(experiment, "waiting", "weak")
    expose(experiment, "strange", "gone")
    crossed = expose(experiment, "crossed", "weak")
    ExposureRow.objects.filter(pk=crossed.pk).update(crossed_over=True)
    RefusedOutcomes.objects.create(metric_name="accuracy", reason="why", count=3, last_at=NOW)

    computation = compute_result(experiment, NOW)

    assert computation.result is not None
    assert computation.result["quality"] == {
        "exposed": 1,
        "crossed_over": 1,
        "moved": 0,
        "waiting": 1,
        "unknown_variants": {"gone": 1},
        "refused_outcomes": {"why": 3},
        "holdout": 0,
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

    monkeypatch.setattr(results, "make_report", fail)
    refresh_result(experiment, NOW + timedelta(seconds=5))
    experiment.refresh_from_db()

    assert experiment.result == good
    assert experiment.refreshed_at == NOW
    assert experiment.refresh_error == "ValueError: cannot be"


def test_the_final_result_waits_for_data_in_flight_and_is_frozen() -> None:
    experiment = make_running()
    expose(experiment, "early", "weak")
    stop_experiment(experiment=experiment, actor=ANNA, now=NOW)
    assert not finalise_result(experiment, NOW)
    expose(experiment, "late", "weak")

    assert finalise_result(experiment, NOW + LATE_ARRIVALS)

    expose(experiment, "too late", "weak")
    assert not finalise_result(experiment, NOW + timedelta(hours=1))
    refresh_result(experiment, NOW + timedelta(hours=1))
    experiment.refresh_from_db()
    assert experiment.refreshed_at == NOW + LATE_ARRIVALS
    assert experiment.refresh_due_at is None
    assert experiment.result["quality"]["exposed"] == 2


def test_the_course_over_time_is_thinned_and_keeps_its_ends() -> None:
    experiment = make_running()
    for i in range(POINTS_MAX + 5):
        _add_point(experiment, {"metrics": []}, NOW + timedelta(seconds=i))

    at = list(experiment.points.order_by("at").values_list("at", flat=True))
    assert len(at) <= POINTS_MAX
    assert (at[0], at[-1]) == (NOW, NOW + timedelta(seconds=POINTS_MAX + 4))


def test_a_slow_refresh_is_due_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = make_running()
    clock = iter([0.0, 7.0])
    monkeypatch.setattr(results, "monotonic", lambda: next(clock))

    refresh_result(experiment, NOW)

    experiment.refresh_from_db()
    assert experiment.refresh_due_at == NOW + timedelta(seconds=70)


@pytest.mark.django_db(transaction=True)
def test_all_scans_of_a_result_read_one_snapshot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experiment = make_running()
    for i in range(4):
        expose(experiment, f"u{i}", "weak")
        observe(experiment.metric, f"u{i}", 1.0)
    fold_all()
    real = Postgres.phase_counts

    def meanwhile(*arguments: Any) -> Any:
        counts = real(*arguments)
        another = connections.create_connection("default")
        with another.cursor() as cursor:
            cursor.execute("UPDATE experiments_exposurerow SET crossed_over = TRUE")
        another.close()
        return counts

    monkeypatch.setattr(Postgres, "phase_counts", meanwhile)
    result = compute_result(experiment, NOW).result

    assert result is not None
    assert result["quality"]["exposed"] == 4
    assert result["metrics"][0]["arms"][0]["n"] == 4
