"""Two equal variants whose weights grow from 90:10 to 50:50 while the rate doubles: no winner."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from apps.experiments.models import (
    Experiment,
    ExposureRow,
    Metric,
    OutcomeRow,
    TouchedUnit,
    WeightChange,
)
from apps.experiments.results import compute_result
from apps.experiments.services import MetricChoice, VariantSpec
from apps.experiments.unit_values import fold_all
from apps.experiments.warehouse.export import export_parquet
from contract.bucketing import bucket
from tests.experiments.factories import NOW, make_metric, make_running
from tests.experiments.warehouse.agreement import warehouse

pytestmark = pytest.mark.django_db
RAMP = NOW + timedelta(hours=1)
LATER = NOW + timedelta(hours=3)
UNITS = 3_000
# In both arms exactly one in this number of units has the event: before and after the ramp.
EVERY = {0: 20, 1: 5}


def metrics() -> list[MetricChoice]:
    bought = make_metric("bought")
    spend = Metric.objects.create(name="spend", kind="mean", outcomes_of=bought, per_unit="sum")
    ratio = Metric.objects.create(
        name="per-visit", kind="ratio", outcomes_of=bought, divided_by=make_metric("visits", "mean")
    )
    high = Metric.objects.create(
        name="high", kind="quantile", outcomes_of=bought, per_unit="max", quantile_ppm=900_000
    )
    rest = [MetricChoice(metric, "secondary") for metric in (spend, ratio, high)]
    return [MetricChoice(bought), *rest]


@pytest.fixture
def ramped() -> Experiment:
    """Return an experiment with its exposures and outcomes: the same rates in both variants."""
    experiment = make_running(
        variants=(VariantSpec("old", 1, 9_000, is_control=True), VariantSpec("new", 2, 1_000)),
        metrics=metrics(), planned_units=2 * UNITS,
    )  # fmt: skip
    WeightChange.objects.create(
        experiment=experiment, at=RAMP, weights_bp={"old": 5_000, "new": 5_000}, actor="anna"
    )
    met: list[ExposureRow] = []
    sent: list[OutcomeRow] = []
    counts: dict[tuple[int, str], int] = {}
    bought, visits = (Metric.objects.get(name=name) for name in ("bought", "visits"))
    for i in range(2 * UNITS):
        phase, unit = i // UNITS, f"u{i}"
        at = NOW + timedelta(seconds=20) + phase * (RAMP - NOW)
        place = bucket(experiment.variant_salt, unit)
        arm = "old" if place < (9_000, 5_000)[phase] else "new"
        met.append(ExposureRow(experiment=experiment, unit=unit, variant_name=arm, at=at,
                               version_number="1", bucket=place))  # fmt: skip
        counts[phase, arm] = counts.get((phase, arm), 0) + 1
        value = float(counts[phase, arm] % EVERY[phase] == 0)
        for metric, y in ((bought, value), (visits, 1.0 + i % 3)):
            sent.append(OutcomeRow(event_id=f"{unit}-{metric.name}", unit=unit, metric=metric,
                                   value=y, occurred_at=at + timedelta(seconds=5)))  # fmt: skip
    ExposureRow.objects.bulk_create(met)
    OutcomeRow.objects.bulk_create(sent)
    TouchedUnit.objects.bulk_create(TouchedUnit(unit=row.unit) for row in met)
    fold_all()
    return experiment


def check(result: dict[str, Any] | None) -> None:
    assert result is not None
    assert (result["winner"], result["is_significant"]) == (None, False)
    assert "2 weight phases" in result["verdict"]
    assert [phase["weights_bp"]["new"] for phase in result["phases"]] == [1_000, 5_000]
    for metric in result["metrics"]:
        (compared,) = metric["comparisons"]
        is_quantile = metric["kind"] == "quantile"
        assert compared["basis"] == ("present-phase" if is_quantile else "phases")
        assert compared["outcome"] == "undecided"
        if not is_quantile:
            assert compared["fixed"]["p_value"] > 0.1
            assert abs(compared["uplift"]) < 0.1


def test_by_postgresql_there_is_no_winner(ramped: Experiment) -> None:
    computed = compute_result(ramped, LATER, is_final=True)

    assert not computed.error
    check(computed.result)
    # The analysis by phase matters: pooled, the same units would give a winner.
    arms = {arm["name"]: arm["mean"] for arm in (computed.result or {})["metrics"][0]["arms"]}
    assert arms["new"] / arms["old"] > 1.15


def test_by_a_warehouse_there_is_no_winner(ramped: Experiment, tmp_path: Path) -> None:
    source = warehouse(export_parquet(ramped, tmp_path / "out"))
    computed = compute_result(ramped, LATER, is_final=True, source=source)

    assert not computed.error
    check(computed.result)
