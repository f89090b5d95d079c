"""Exposures and outcomes are stored once; a bad one does not affect the others."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from apps.experiments.ingestion import (
    apply_exposures,
    apply_outcomes,
    record_outcomes,
)
from apps.experiments.models import (
    ExposureRow,
    Metric,
    OutcomeRow,
    RefusedOutcomes,
    TouchedUnit,
)
from apps.experiments.refusals import UNKNOWN_METRICS_MAX
from contract.refusals import OTHER_METRICS
from tests.experiments.factories import (
    NOW,
    NOW_MS,
    batch,
    exposure,
    make_draft,
    make_metric,
    outcome,
)

pytestmark = pytest.mark.django_db

DAY_MS = 86_400_000


def test_the_first_exposure_of_a_unit_is_kept() -> None:
    experiment = make_draft()
    later = exposure(experiment, "u", "weak", at_ms=NOW_MS - 1_000)
    earlier = exposure(experiment, "u", "weak", at_ms=NOW_MS - 5_000)

    apply_exposures([batch(exposures=(later,))], NOW)
    apply_exposures([batch(exposures=(earlier,))], NOW)

    row = ExposureRow.objects.get()
    assert row.at.timestamp() * 1_000 == NOW_MS - 5_000
    assert not row.crossed_over


@pytest.mark.parametrize("together", [True, False])
def test_a_unit_exposed_to_two_variants_has_crossed_over(together: bool) -> None:
    experiment = make_draft()
    met = [exposure(experiment, "u", "weak"), exposure(experiment, "u", "strong")]

    if together:
        apply_exposures([batch(exposures=tuple(met))], NOW)
    else:
        for one in met:
            apply_exposures([batch(exposures=(one,))], NOW)

    assert ExposureRow.objects.get().crossed_over


def test_a_crossover_stays_when_the_first_variant_comes_again() -> None:
    experiment = make_draft()
    for variant in ("weak", "strong", "weak"):
        apply_exposures([batch(exposures=(exposure(experiment, "u", variant),))], NOW)

    assert ExposureRow.objects.get().crossed_over


def test_exposures_of_unknown_experiments_are_skipped_and_counted() -> None:
    experiment = make_draft()
    good = exposure(experiment, "u", "weak")
    strange = replace(good, experiment="0b5e7f6e-0000-4000-8000-000000000000")
    nonsense = replace(good, experiment="no-uuid")
    long = replace(good, unit="u" * 201)

    skipped = apply_exposures([batch(exposures=(strange, nonsense, long, good))], NOW)

    assert skipped == {"unknown experiment": 2, "unit is longer than 200 characters": 1}
    assert ExposureRow.objects.count() == 1


@pytest.mark.parametrize("at_ms", [NOW_MS + DAY_MS, 2**62, -(2**62)])
def test_an_exposure_with_an_impossible_time_is_clamped(at_ms: int) -> None:
    experiment = make_draft()

    apply_exposures([batch(exposures=(exposure(experiment, "u", "weak", at_ms=at_ms),))], NOW)

    assert ExposureRow.objects.get().at <= NOW


def test_an_outcome_is_recorded_once_per_event_id() -> None:
    make_metric()
    twice = batch(outcomes=(outcome("a"), outcome("a", value=0.0), outcome("b")))

    first = apply_outcomes([twice], NOW)
    second = apply_outcomes([twice], NOW)

    assert (first.recorded, first.duplicates) == (2, 1)
    assert (second.recorded, second.duplicates) == (0, 3)
    assert OutcomeRow.objects.get(event_id="a").value == 1.0


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"metric": "revenue"}, "unknown metric"),
        ({"value": float("nan")}, "value is not a finite number"),
        ({"value": float("inf")}, "value is not a finite number"),
        ({"value": 1e200}, "value is beyond 1e+100"),
        ({"value": 0.5}, "value of a proportion is neither 0 nor 1"),
        ({"occurred_at_ms": NOW_MS + DAY_MS}, "occurred_at is more than an hour in the future"),
        ({"occurred_at_ms": 2**62}, "occurred_at is more than an hour in the future"),
        ({"occurred_at_ms": NOW_MS - 400 * DAY_MS}, "occurred_at is more than a year ago"),
        ({"unit_id": ""}, "unit_id is empty"),
        ({"unit_id": "u\x00"}, "unit_id holds a NUL character"),
        ({"event_id": "e" * 201}, "event_id is longer than 200 characters"),
    ],
)
def test_a_bad_outcome_is_refused_alone_and_counted(fields: dict[str, object], reason: str) -> None:
    make_metric()
    bad = outcome(**({"event_id": "bad"} | fields))  # type: ignore[arg-type]

    report = record_outcomes([outcome("good"), bad], NOW)

    assert [(refusal.index, refusal.reason) for refusal in report.refused] == [(1, reason)]
    assert OutcomeRow.objects.get().event_id == "good"
    assert RefusedOutcomes.objects.get().reason == reason


def test_a_mean_takes_any_finite_value() -> None:
    make_metric("amount", Metric.Kind.MEAN)

    report = record_outcomes([outcome(metric="amount", value=-12.5)], NOW)

    assert report.recorded == 1


def test_refusals_add_up() -> None:
    for _ in range(2):
        record_outcomes([outcome("a", metric="x"), outcome("b", metric="x")], NOW)

    assert RefusedOutcomes.objects.get(metric_name="x").count == 4


def test_counts_of_unknown_metrics_are_bounded() -> None:
    strange = [outcome(str(i), metric=f"m{i}") for i in range(UNKNOWN_METRICS_MAX + 50)]

    record_outcomes(strange, NOW)
    record_outcomes(strange, NOW)

    assert RefusedOutcomes.objects.count() == UNKNOWN_METRICS_MAX + 1
    assert RefusedOutcomes.objects.get(metric_name=OTHER_METRICS).count == 100


def test_only_headers_among_the_dimensions_are_stored() -> None:
    experiment = make_draft(dimensions=["tenant", "country"])
    sent = {"country": "de\x00", "cookie": "secret", "tenant": "by-header"}

    met = exposure(experiment, "u", "weak", tenant="acme", attributes=sent)
    apply_exposures([batch(exposures=(met,))], NOW)

    row = ExposureRow.objects.get()
    assert (row.tenant, row.attributes) == ("acme", {"country": "de"})


def test_repeated_data_touch_no_unit() -> None:
    met = batch(exposures=(exposure(make_draft(), "met", "weak"),))
    sent = batch(outcomes=(outcome("a", unit_id="a"), outcome("b", unit_id="b")))
    apply_exposures([met], NOW)
    apply_outcomes([sent], NOW)
    assert set(TouchedUnit.objects.values_list("unit", flat=True)) == {"met", "a", "b"}
    TouchedUnit.objects.all().delete()

    apply_exposures([met], NOW)
    apply_outcomes([sent, batch(outcomes=(outcome("b", unit_id="c"),))], NOW)

    assert not TouchedUnit.objects.exists()
