"""The reconciler around its edges: first versions, last steps, faults, incidents of the servers."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from apps.lib.clock import database_now
from apps.models.services import change_deployment
from apps.models.states import DeploymentState
from apps.rollouts import evaluation, services, steps
from apps.rollouts.models import BreakerTripRecord, Evaluation, Instance, Rollout
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.publication import latest_table
from apps.rollouts.states import Phase
from apps.rollouts.tick import tick_one, tick_rollouts
from apps.rollouts.verdicts import CheckResult, Verdict
from contract.routing import decode
from tests.rollouts.factories import ANNA, make_baking, make_instance, make_model

pytestmark = pytest.mark.django_db


def without_checks(*weights: int) -> None:
    """Save a default plan whose steps only bake, for no time at all."""
    steps = tuple(StepDocument(weight_bp=w, bake_s=0, checks=()) for w in weights)
    save_plan(document=PlanDocument(name="bare", steps=steps), is_default=True, actor=ANNA)


def turn(rollout: Rollout) -> Rollout:
    """Let checks be due, tick, and read the row again."""
    Rollout.objects.filter(next_check_at__isnull=False).update(next_check_at=database_now())
    tick_rollouts()
    rollout.refresh_from_db()
    return rollout


SETTLED = timedelta(seconds=10)


def trip(rollout: Rollout, number: int, at: datetime, **fields: Any) -> None:
    defaults = {
        "instance": "i-1",
        "boot": "b",
        "generation": rollout.generation,
        "count": 3,
        "first_at": at - SETTLED,
    }
    BreakerTripRecord.objects.create(
        model_name=rollout.model.name,
        version_number=str(number),
        last_at=at,
        reason="10 of 20 failed",
        **(defaults | fields),
    )


def test_a_canary_goes_through_all_its_steps_to_stable() -> None:
    without_checks(500, 10_000)
    make_instance()
    rollout = make_baking(make_model())
    phases: list[tuple[str, int]] = []
    while rollout.is_live and len(phases) < 20:
        turn(rollout)
        phases.append((rollout.phase, rollout.weight_bp))
    assert list(dict.fromkeys(phases)) == [
        ("baking", 500),
        ("baking", 10_000),
        ("promoting", 10_000),
        ("succeeded", 10_000),
    ]
    rollout.model.refresh_from_db()
    assert rollout.model.stable == rollout.target
    assert rollout.ended_at is not None


def test_a_first_version_is_stable_as_soon_as_it_is_ready() -> None:
    model = make_model(stable=None)
    target = model.versions.get(number=1)
    rollout = services.start_rollout(model=model, target=target, actor=ANNA, now=database_now())
    for _ in range(3):
        turn(rollout)
    assert (rollout.kind, rollout.phase) == (Rollout.Kind.FIRST, Phase.SUCCEEDED)
    table = latest_table()
    assert table is not None
    assert decode(bytes(table.document)).models["digits"].stable == "1"


def test_without_a_live_instance_nothing_bakes() -> None:
    rollout = turn(make_baking(make_model()))
    assert rollout.step_started_at is None
    assert "no data-plane instance is live" in rollout.reason


def test_an_instance_that_stops_or_is_long_gone_is_not_waited_for() -> None:
    rollout = make_baking(make_model())
    make_instance("up")
    make_instance("stopping", applied_generation=0, is_stopping=True)
    long_ago = database_now() - timedelta(hours=1)
    make_instance("gone", applied_generation=0, reported_at=long_ago)
    assert turn(rollout).step_started_at is not None


@pytest.mark.parametrize("applied", [0, 99])
def test_a_silent_instance_holds_the_step_and_is_named(applied: int) -> None:
    rollout = make_baking(make_model())
    make_instance("up")
    lately = database_now() - timedelta(minutes=1)
    make_instance("mute", applied_generation=applied, reported_at=lately)
    assert turn(rollout).step_started_at is None
    assert "instance mute has been silent for 60 s" in rollout.reason


def test_a_step_does_not_pass_while_an_instance_is_silent() -> None:
    without_checks(500, 10_000)
    make_instance("up")
    rollout = turn(make_baking(make_model()))
    make_instance("mute", reported_at=database_now() - timedelta(minutes=1))
    assert turn(rollout).weight_bp == 500
    assert "the step passed, but is held: instance mute has been silent" in rollout.reason
    Instance.objects.filter(name="mute").update(reported_at=database_now())
    assert turn(rollout).weight_bp == 10_000


def test_checks_wait_for_their_interval() -> None:
    rollout = make_baking(make_model())
    make_instance()
    for _ in range(3):
        tick_rollouts()
    assert not Evaluation.objects.exists()
    turn(rollout)
    assert {row.check_name for row in Evaluation.objects.all()} == {
        "error-rate",
        "latency",
        "unanswered",
        "sample-ratio",
    }


def test_both_versions_tripping_together_is_no_fault_of_the_canary() -> None:
    rollout = make_baking(make_model())
    now = database_now()
    trip(rollout, 2, now)
    trip(rollout, 1, now + timedelta(seconds=20))
    assert turn(rollout).phase == Phase.BAKING


def test_a_canary_that_trips_first_when_the_servers_hang_waits_for_stables_trip() -> None:
    rollout = make_baking(make_model())
    now = database_now()
    trip(rollout, 2, now, first_at=now)
    assert turn(rollout).phase == Phase.BAKING
    trip(rollout, 1, now)
    BreakerTripRecord.objects.update(first_at=now - SETTLED)
    assert turn(rollout).phase == Phase.BAKING


def test_a_later_trip_of_the_canary_alone_counts_after_an_incident_of_both() -> None:
    rollout = make_baking(make_model())
    now = database_now()
    trip(rollout, 2, now + timedelta(seconds=100), first_at=now - SETTLED)
    trip(rollout, 1, now)
    assert turn(rollout).phase == Phase.ROLLING_BACK


def test_a_trip_from_before_the_canary_had_traffic_is_not_counted() -> None:
    rollout = make_baking(make_model())
    trip(rollout, 2, database_now(), generation=(rollout.generation or 0) - 1)
    trip(rollout, 2, rollout.started_at - timedelta(seconds=1))
    assert turn(rollout).phase == Phase.BAKING


def test_one_rollouts_fault_does_not_keep_the_others_from_their_guardrails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken, sound = make_baking(make_model("a")), make_baking(make_model("b"))
    trip(sound, 2, database_now())

    def bake(rollout: Rollout, context: steps.StepContext) -> None:
        if rollout.pk == broken.pk:
            raise RuntimeError("a fault")
        steps._bake(rollout, context)

    monkeypatch.setitem(steps.STEPS, Phase.BAKING, bake)
    turn(sound)
    assert sound.phase == Phase.ROLLING_BACK


def test_a_target_that_stumbles_while_it_bakes_stays_in_the_table() -> None:
    rollout = make_baking(make_model())
    deployment = rollout.target.deployments.get()
    change_deployment(deployment, DeploymentState.LOADING, "lost", ANNA, database_now())
    turn(rollout)
    table = latest_table()
    assert table is not None
    assert "2" in decode(bytes(table.document)).models["digits"].versions


def test_an_ended_rollout_is_left_alone() -> None:
    rollout = make_baking(make_model())
    Rollout.objects.update(phase=Phase.FAILED)
    assert tick_one(rollout.pk) is False


def pin(rollout: Rollout, *names: str, instance: str = "i-1") -> Rollout:
    Instance.objects.filter(name=instance).update(pinned=list(names))
    return turn(rollout)


@pytest.mark.parametrize("names", [("digits",), ("*",), ("other", "digits")])
def test_a_rollout_on_a_pinned_model_does_not_begin_to_bake(names: tuple[str, ...]) -> None:
    rollout = make_baking(make_model())
    make_instance("i-1")
    make_instance("i-2")
    pin(rollout, *names)
    assert (rollout.phase, rollout.step_started_at) == (Phase.BAKING, None)
    assert "instance i-1 has digits pinned to stable by its operator" in rollout.reason
    assert "i-2" not in rollout.reason


def test_a_pin_on_another_model_or_a_silent_instance_holds_nothing() -> None:
    rollout = make_baking(make_model())
    make_instance("i-1", pinned=["fraud"])
    long_ago = database_now() - timedelta(hours=1)
    make_instance("silent", pinned=["*"], reported_at=long_ago)
    assert turn(rollout).step_started_at is not None


def test_a_pin_stops_the_clock_and_the_step_bakes_anew_when_it_is_gone() -> None:
    without_checks(500, 10_000)
    make_instance()
    rollout = turn(make_baking(make_model()))
    assert rollout.step_due_at is not None
    pin(rollout, "digits")
    assert (rollout.weight_bp, rollout.step_due_at) == (500, None)
    for _ in range(3):
        turn(rollout)
    assert rollout.weight_bp == 500
    pin(rollout)
    assert rollout.step_due_at is not None
    assert turn(rollout).weight_bp == 10_000


def test_a_pinned_rollout_keeps_its_guardrails(monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = make_baking(make_model())
    make_instance()
    turn(rollout)
    result = CheckResult("error-rate", Verdict.FAIL, "9 % vs 1 %", {})
    passed = [
        CheckResult(name, Verdict.PASS, "", {})
        for name in ("latency", "unanswered", "sample-ratio")
    ]
    monkeypatch.setattr(evaluation, "judge_checks", lambda inputs: [result, *passed])
    pin(rollout, "*")
    assert (rollout.phase, rollout.reason) == (Phase.ROLLING_BACK, "error-rate: 9 % vs 1 %")


def test_a_person_may_abort_a_pinned_rollout() -> None:
    rollout = make_baking(make_model())
    make_instance()
    pin(rollout, "*")
    services.abort_rollout(rollout=rollout, actor=ANNA, now=database_now())
    assert turn(rollout).phase == Phase.ROLLED_BACK
