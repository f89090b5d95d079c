"""Outcomes as guardrails: counted units, verdicts, and that the log can reproduce them."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.conf import settings
from django.db import connection

from apps.experiments import guardrails, rollout_units
from apps.experiments.guardrails import observe_outcome
from apps.experiments.ingestion import apply_exposures, apply_outcomes
from apps.experiments.models import Metric, OutcomeRow
from apps.experiments.outcome_judge import judge_outcome
from apps.experiments.rollout_models import RolloutExposure
from apps.lib.clock import database_now
from apps.rollouts.check_kinds import OUTCOME, CheckDocument
from apps.rollouts.checks import CheckSettings
from apps.rollouts.evaluation import repeat_check
from apps.rollouts.models import Evaluation, Rollout, RolloutEvent
from apps.rollouts.phases import enter_step
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.tick import tick_rollouts
from contract.messages import Batch, Exposure, Outcome
from contract.routing import CanarySplit
from controlplane.retention.run import run_retention
from tests.rollouts.factories import ANNA, latest, make_baking, make_instance, make_model, send

pytestmark = pytest.mark.django_db

CHECK = CheckDocument(check=OUTCOME, settings={"metric": "bought", "margin": 0.05})
STRICT = CheckSettings(alpha=0.01)


@pytest.fixture
def bought() -> Metric:
    return Metric.objects.create(name="bought", kind=Metric.Kind.PROPORTION)


@pytest.fixture
def rollout(bought: Metric) -> Rollout:
    """Return a rollout at 5 %, with a plan that continues to 50 and 100 %."""
    steps = tuple(
        StepDocument(weight_bp=weight, checks=("error-rate", CHECK))
        for weight in (500, 5_000, 10_000)
    )
    save_plan(document=PlanDocument(name="canary", steps=steps), is_default=True, actor=ANNA)
    make_instance()
    return make_baking(make_model())


def meet(
    rollout: Rollout, unit: str, variant: str, *, at: datetime | None = None, tenant: str = ""
) -> None:
    at_ms = round((at or database_now()).timestamp() * 1_000)
    exposure = Exposure(
        experiment=str(rollout.pk), unit=unit, variant=variant, version="2", at_ms=at_ms,
        tenant=tenant,
    )  # fmt: skip
    batch = Batch(instance="i-1", boot="b", sequence=1, exposures=(exposure,))
    assert not apply_exposures([batch], database_now())


def put(rollout: Rollout, side: str, units: int, events: int, *, bucket: int = 9_000) -> None:
    """Record `units` units of a side, of which the first `events` have the event."""
    at, metric = database_now(), Metric.objects.get()
    names = [f"{side}-{bucket}-{number}" for number in range(units)]
    column = "canary_at" if side == "canary" else "control_at"
    RolloutExposure.objects.bulk_create(
        RolloutExposure(rollout=rollout, unit=name, bucket=bucket, **{column: at}) for name in names
    )
    OutcomeRow.objects.bulk_create(
        OutcomeRow(event_id=name, unit=name, metric=metric, value=number < events, occurred_at=at)
        for number, name in enumerate(names)
    )


def later() -> datetime:
    return database_now() + timedelta(seconds=1)


def observation(rollout: Rollout) -> dict[str, Any]:
    return dict(observe_outcome(rollout, CHECK, later()))


def units_by_step(observed: dict[str, Any], side: str) -> dict[int, int]:
    """Return the number of a side's units with a value, by step."""
    arm = observed["data"]["arms"][side]
    return {each["phase"]: each["units"]["n"] for each in arm["strata"]}


def judged(rollout: Rollout) -> tuple[str, str]:
    result = judge_outcome(CHECK, observation(rollout), STRICT)
    return result.verdict.value, result.reason


def test_data_planes_report_exposures_if_the_plan_checks_outcomes(rollout: Rollout) -> None:
    split = latest().models["digits"].split
    assert isinstance(split, CanarySplit)
    assert split.exposures


def test_without_such_a_check_no_exposures_are_reported() -> None:
    make_baking(make_model())
    split = latest().models["digits"].split
    assert isinstance(split, CanarySplit)
    assert not split.exposures


def test_the_first_exposure_to_each_side_is_kept(rollout: Rollout) -> None:
    first, second = (database_now() - timedelta(seconds=s) for s in (20, 10))
    for variant, at in (("stable", second), ("canary", second), ("stable", first)) * 2:
        meet(rollout, "u", variant, at=at)
    row = RolloutExposure.objects.get()
    assert row.control_at
    assert row.canary_at
    assert abs(row.control_at - first) < timedelta(seconds=0.1)
    assert abs(row.canary_at - second) < timedelta(seconds=0.1)


def test_an_unknown_side_is_skipped_and_counted(rollout: Rollout) -> None:
    odd = Exposure(experiment=str(rollout.pk), unit="u", variant="explicit", version="2", at_ms=1)
    batch = Batch(instance="i-1", boot="b", sequence=1, exposures=(odd,))
    assert apply_exposures([batch], database_now()) == {"variant is not a side of a rollout": 1}


def test_a_canary_that_sells_much_less_fails(rollout: Rollout) -> None:
    put(rollout, "canary", 600, 60)
    put(rollout, "control", 4_000, 1_200)
    verdict, reason = judged(rollout)
    assert verdict == "fail"
    assert "bought 0.1 vs stable 0.3, margin 0.05, n=600 vs 4000" in reason


def test_a_canary_that_sells_as_much_passes(rollout: Rollout) -> None:
    put(rollout, "canary", 3_000, 900)
    put(rollout, "control", 30_000, 9_000)
    assert judged(rollout)[0] == "pass"


def test_of_a_metric_that_should_fall_more_is_worse(rollout: Rollout) -> None:
    Metric.objects.update(direction=Metric.Direction.DECREASE)
    put(rollout, "canary", 600, 180)
    put(rollout, "control", 4_000, 400)
    assert judged(rollout)[0] == "fail"


@pytest.mark.parametrize(
    ("canary", "control", "verdict"),
    [
        ((0, 0), (4_000, 400), "no-data"),
        ((50, 5), (4_000, 400), "insufficient-sample"),
        ((150, 15), (150, 15), "insufficient-sample"),
        ((40, 0), (60, 0), "insufficient-sample"),
        ((200, 12), (4_000, 520), "inconclusive"),
    ],
)
def test_undecided_data_are_neither_pass_nor_fail(
    rollout: Rollout, canary: tuple[int, int], control: tuple[int, int], verdict: str
) -> None:
    put(rollout, "canary", *canary)
    put(rollout, "control", *control)
    assert judged(rollout)[0] == verdict


def test_units_exposed_to_both_sides_are_excluded_and_counted(rollout: Rollout) -> None:
    put(rollout, "canary", 5, 5)
    put(rollout, "control", 5, 5)
    RolloutExposure.objects.filter(unit="control-9000-0").update(canary_at=database_now())
    observed = observation(rollout)
    assert observed["met_both"] == 1
    assert observed["exposed"] == {"canary": 5, "control": 4}
    assert observed["data"]["arms"]["control"]["whole"]["n"] == 4


def test_stable_units_that_now_belong_to_the_canary_are_excluded(rollout: Rollout) -> None:
    put(rollout, "control", 7, 7, bucket=3_000)
    put(rollout, "control", 5, 5, bucket=9_000)
    assert observation(rollout)["exposed"]["control"] == 12
    enter_step(rollout, 1, "on", ANNA, database_now())
    observed = observation(rollout)
    assert (observed["exposed"]["control"], observed["leaving"]) == (5, 7)


def test_units_are_compared_with_units_of_the_same_step(rollout: Rollout) -> None:
    RolloutEvent.objects.update(at=database_now() - timedelta(hours=1))
    put(rollout, "canary", 3, 3, bucket=1)
    RolloutExposure.objects.update(canary_at=database_now() - timedelta(minutes=30))
    enter_step(rollout, 1, "on", ANNA, database_now())
    put(rollout, "canary", 2, 0, bucket=2)
    assert units_by_step(observation(rollout), "canary") == {0: 3, 1: 2}


def test_at_100_percent_the_data_with_a_control_are_used(rollout: Rollout) -> None:
    put(rollout, "canary", 5, 5)
    put(rollout, "control", 5, 5)
    for index in (1, 2):
        enter_step(rollout, index, "on", ANNA, later())
    RolloutExposure.objects.filter(canary_at=None).update(canary_at=later() + timedelta(seconds=9))
    observed = dict(observe_outcome(rollout, CHECK, later() + timedelta(hours=1)))
    assert (observed["until_step"], observed["met_both"]) == (1, 0)
    assert observed["exposed"] == {"canary": 5, "control": 5}


def test_outcomes_before_the_exposure_do_not_count(rollout: Rollout) -> None:
    put(rollout, "canary", 5, 5)
    # By more than the tolerated skew of clocks.
    before = later() - timedelta(seconds=60)
    OutcomeRow.objects.filter(unit="canary-9000-0").update(occurred_at=before)
    RolloutExposure.objects.update(canary_at=later() - timedelta(seconds=0.9))
    OutcomeRow.objects.exclude(unit="canary-9000-0").update(occurred_at=later())
    observed = dict(observe_outcome(rollout, CHECK, later() + timedelta(seconds=9)))
    assert observed["data"]["arms"]["canary"]["whole"]["n"] == 4


def test_a_failed_guardrail_rolls_back_and_its_verdict_can_be_reproduced(rollout: Rollout) -> None:
    tick_rollouts()
    put(rollout, "canary", 600, 60)
    put(rollout, "control", 4_000, 1_200)
    Rollout.objects.update(next_check_at=database_now())
    tick_rollouts()
    rollout.refresh_from_db()
    assert rollout.phase == "rolling_back"
    assert rollout.reason.startswith("outcome: bought 0.1 vs stable 0.3")
    row = Evaluation.objects.get(check_name=OUTCOME)
    OutcomeRow.objects.all().delete()
    again = repeat_check(row)
    assert (again.verdict, again.reason, again.evidence) == (row.verdict, row.reason, row.evidence)


def test_an_observation_of_an_earlier_release_decides_nothing() -> None:
    kept = {"metric": "bought", "kind": "proportion", "strata": [{"step": 0}]}
    result = judge_outcome(CHECK, kept, STRICT)
    assert (result.verdict, "earlier release" in result.reason) == ("no-data", True)


def test_a_metric_measured_by_data_planes_is_refused_and_not_observed(
    rollout: Rollout,
) -> None:
    Metric.objects.update(source=Metric.Source.ERRORS)
    settings = {"metric": "bought", "margin": 0.05}
    assert "data planes measure bought (errors)" in guardrails.problem_of_metric(settings)
    assert "data planes measure bought (errors)" in observation(rollout)["problem"]


def test_only_means_and_ratios_have_a_covariate(bought: Metric) -> None:
    settings = {"metric": "bought", "margin": 0.05, "covariate_s": 60}
    assert "only means and ratios are adjusted" in guardrails.problem_of_metric(settings)
    Metric.objects.update(kind=Metric.Kind.MEAN)
    assert not guardrails.problem_of_metric(settings)


def test_a_reason_holds_the_number_of_missing_units(rollout: Rollout) -> None:
    put(rollout, "canary", 200, 56)
    put(rollout, "control", 4_000, 1_200)
    verdict, reason = judged(rollout)
    assert verdict == "insufficient-sample"
    assert re.search(r"if the difference stays, about 1,\d{3} units of the canary", reason)


def test_a_step_without_a_counterpart_is_counted_and_compares_nothing(rollout: Rollout) -> None:
    RolloutEvent.objects.update(at=database_now() - timedelta(hours=1))
    put(rollout, "control", 700, 70)
    RolloutExposure.objects.update(control_at=database_now() - timedelta(minutes=30))
    enter_step(rollout, 1, "on", ANNA, database_now())
    put(rollout, "canary", 400, 120, bucket=2)
    put(rollout, "control", 400, 120, bucket=9_001)
    assert "bought 0.3 vs stable 0.3, margin 0.05" in judged(rollout)[1]
    assert "n=400 vs 1100, 700 of them not compared" in judged(rollout)[1]


def test_a_deleted_metric_is_an_error_and_moves_nothing(rollout: Rollout) -> None:
    tick_rollouts()
    Metric.objects.all().delete()
    Rollout.objects.update(next_check_at=database_now())
    tick_rollouts()
    row = Evaluation.objects.get(check_name=OUTCOME)
    assert (row.verdict, row.reason) == ("provider-error", "the metric 'bought' no longer exists")


def test_counting_that_takes_too_long_is_a_problem_and_is_undone(
    rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guardrails, "COUNTING_MS", 50)
    monkeypatch.setattr(rollout_units, "COUNT_UNITS", "SELECT pg_sleep(5)")
    assert observation(rollout)["problem"] == "counting outcomes of bought took longer than 0.05 s"
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('statement_timeout')")
        assert cursor.fetchone() == ("0",)


def test_exposures_are_deleted_long_after_the_end_of_their_rollout(rollout: Rollout) -> None:
    meet(rollout, "u", "canary")
    run_retention(database_now())
    assert RolloutExposure.objects.count() == 1
    kept = timedelta(days=settings.RETENTION_DAYS["shadow_pairs"])
    Rollout.objects.update(ended_at=database_now() - kept - timedelta(minutes=1))
    run_retention(database_now())
    assert not RolloutExposure.objects.exists()


def test_a_pass_needs_recent_traffic(rollout: Rollout) -> None:
    tick_rollouts()
    put(rollout, "canary", 3_000, 900)
    put(rollout, "control", 30_000, 9_000)
    Rollout.objects.update(next_check_at=database_now())
    tick_rollouts()
    assert Evaluation.objects.get(check_name=OUTCOME).verdict == "no-data"
    # The evaluation waits for instances that may still report the interval.
    at = database_now() - timedelta(seconds=40)
    for number, variant in ((2, "canary"), (1, "stable")):
        send(
            "digits", number, at=at, variant=variant, split=str(rollout.pk),
            generation=rollout.generation, interval_started_at=at,
        )  # fmt: skip
    Rollout.objects.update(next_check_at=database_now())
    tick_rollouts()
    assert Evaluation.objects.filter(check_name=OUTCOME).latest("id").verdict == "pass"


def test_only_outcomes_of_tenants_that_requested_the_unit_count(rollout: Rollout) -> None:
    at_ms = round(database_now().timestamp() * 1_000)
    for unit in ("u1", "u2"):
        meet(rollout, unit, "canary", tenant="shop")
    meet(rollout, "u2", "canary", tenant="rival")
    sent = [("shop", "u1", 1.0), ("rival", "u1", 0.0), ("rival", "u2", 0.0), ("", "u2", 1.0)]
    outcomes = tuple(
        Outcome(
            event_id=unit, unit_id=unit, metric="bought", value=value, occurred_at_ms=at_ms,
            tenant=tenant, models=("digits",),
        )
        for tenant, unit, value in sent
    )  # fmt: skip
    apply_outcomes([Batch(instance="i", boot="b", sequence=2, outcomes=outcomes)], database_now())
    whole = observation(rollout)["data"]["arms"]["canary"]["whole"]
    assert (whole["n"], whole["means"]) == (2, (0.5,))
