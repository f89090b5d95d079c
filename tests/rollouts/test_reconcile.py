"""Whole rollouts, tick by tick, on a real database: what moves traffic and what must not."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from apps.lib.clock import database_now
from apps.lib.errors import Conflict, Invalid
from apps.models.models import Deployment, LiveSplit
from apps.models.states import DeploymentState
from apps.rollouts import services
from apps.rollouts.breaker_trips import TRIP_SETTLES_IN
from apps.rollouts.models import BreakerTripRecord, PublishedTable, Rollout
from apps.rollouts.publication import record_report
from apps.rollouts.states import LIVE_PHASES, Phase
from apps.rollouts.tick import tick_rollouts
from contract.messages import BreakerTrip, InstanceReport
from contract.routing import RoutingTable, decode
from tests.rollouts.factories import ANNA, make_baking, make_model, make_plan, send

pytestmark = pytest.mark.django_db

BOTH = (("stable", 1), ("canary", 2))


def latest() -> RoutingTable:
    table = PublishedTable.objects.order_by("-generation").first()
    assert table is not None
    return decode(bytes(table.document))


def ack(generation: int | None, **fields: Any) -> None:
    message = InstanceReport(
        instance="i-1", boot="b", at_ms=0, applied_generation=generation or 0, **fields
    )
    record_report(message, now=database_now())


def baking() -> Rollout:
    """A rollout in its first step whose clock runs and is due, and whose checks are due."""
    model = make_model()
    make_plan()
    rollout = make_baking(model)
    ack(rollout.generation)
    tick_rollouts()
    make_due(rollout)
    return rollout


def make_due(rollout: Rollout) -> None:
    past = database_now() - timedelta(seconds=1)
    Rollout.objects.filter(pk=rollout.pk).update(step_due_at=past, next_check_at=past)


def observe(rollout: Rollout, intervals: int, **canary: int) -> None:
    """Send closed intervals of both versions: 50 canary and 950 stable units each."""
    rollout.refresh_from_db()
    for back in range(intervals):
        at = database_now() - timedelta(seconds=35 + 10 * back)
        for variant, version in BOTH:
            n = 50 if variant == "canary" else 950
            extra = canary if variant == "canary" else {}
            send(
                rollout.model.name,
                version,
                at=at,
                variant=variant,
                split=str(rollout.pk),
                generation=rollout.generation,
                interval_started_at=at,
                **({"requests": n, "units": n, "latency": {"80": n}} | extra),
            )


def test_a_rollout_waits_until_its_target_is_ready() -> None:
    model = make_model()
    make_plan()
    target = model.versions.get(number=2)
    Deployment.objects.filter(version=target).update(state=DeploymentState.LOADING)
    rollout = services.start_rollout(model=model, target=target, actor=ANNA, now=database_now())
    for _ in range(3):
        tick_rollouts()
    rollout.refresh_from_db()
    assert (rollout.phase, rollout.weight_bp) == (Phase.PREPARING, 0)


def test_a_target_that_cannot_be_served_fails_the_rollout_in_tritons_words() -> None:
    model = make_model()
    make_plan()
    target = model.versions.get(number=2)
    rollout = services.start_rollout(model=model, target=target, actor=ANNA, now=database_now())
    tick_rollouts()
    Deployment.objects.filter(version=target).update(state="failed", reason="no such file")
    tick_rollouts()
    rollout.refresh_from_db()
    assert rollout.phase == Phase.FAILED
    assert "no such file" in rollout.reason
    assert not LiveSplit.objects.exists()


def test_the_clock_waits_for_every_live_instance_and_names_it() -> None:
    model = make_model()
    make_plan()
    rollout = make_baking(model)
    assert rollout.generation is not None
    ack(rollout.generation - 1, refused_generation=rollout.generation, refusal="not warm")
    tick_rollouts()
    rollout.refresh_from_db()
    assert rollout.step_started_at is None
    assert "i-1" in rollout.reason
    assert "not warm" in rollout.reason


def test_no_data_never_passes_a_step() -> None:
    rollout = baking()
    tick_rollouts()
    rollout.refresh_from_db()
    assert (rollout.phase, rollout.step_index) == (Phase.BAKING, 0)
    assert "no-data" in rollout.reason


def test_a_step_that_cannot_be_decided_pauses_for_a_person() -> None:
    rollout = baking()
    past = database_now() - timedelta(seconds=1)
    # It lacks data: that is waited for as long as the plan says.
    document = {**rollout.plan_document, "wait_max_s": 0}
    Rollout.objects.filter(pk=rollout.pk).update(step_limit_at=past, plan_document=document)
    tick_rollouts()
    rollout.refresh_from_db()
    assert rollout.phase == Phase.PAUSED


def test_a_healthy_canary_takes_the_next_step() -> None:
    rollout = baking()
    # Stable's usual latency is known from before the rollout.
    frozen = {"p95": 90, "p99": 90, "n": 5_000}
    frozen["frozen_at"] = (database_now() - timedelta(hours=1)).isoformat()  # type: ignore[assignment]
    Rollout.objects.filter(pk=rollout.pk).update(latency_reference=frozen)
    observe(rollout, 40)
    tick_rollouts()
    rollout.refresh_from_db()
    assert (rollout.phase, rollout.step_index, rollout.weight_bp) == (Phase.BAKING, 1, 2_500)


def test_errors_roll_back_with_numbers_before_the_step_is_due() -> None:
    rollout = baking()
    later = database_now() + timedelta(hours=1)
    Rollout.objects.filter(pk=rollout.pk).update(step_due_at=later)
    observe(rollout, 5, unit_errors=15, errors=15)
    tick_rollouts()
    rollout.refresh_from_db()
    assert rollout.phase == Phase.ROLLING_BACK
    assert "30.0 % on the canary, 0.00 % on stable" in rollout.reason
    assert latest().models["digits"].split is None


def test_windows_of_another_generation_are_not_counted() -> None:
    rollout = baking()
    observe(rollout, 5, unit_errors=15, errors=15)
    Rollout.objects.filter(pk=rollout.pk).update(step_generations=[10**6])
    tick_rollouts()
    rollout.refresh_from_db()
    assert rollout.phase == Phase.BAKING


def test_a_breaker_trip_of_the_canary_rolls_back() -> None:
    rollout = baking()
    trip = BreakerTrip(
        model="digits",
        version="2",
        generation=rollout.generation or 0,
        count=1,
        last_at_ms=int(database_now().timestamp() * 1_000),
        reason="10 of 20 failed",
    )
    ack(rollout.generation, trips=(trip,))
    BreakerTripRecord.objects.update(first_at=database_now() - TRIP_SETTLES_IN)
    tick_rollouts()
    rollout.refresh_from_db()
    assert rollout.phase == Phase.ROLLING_BACK
    assert "10 of 20 failed" in rollout.reason


def test_a_paused_rollout_keeps_its_guardrails() -> None:
    rollout = baking()
    services.pause_rollout(rollout=rollout, actor=ANNA, now=database_now())
    observe(rollout, 5, unit_errors=15, errors=15)
    make_due(rollout)
    tick_rollouts()
    rollout.refresh_from_db()
    assert rollout.phase == Phase.ROLLING_BACK


def test_promotion_moves_stable_and_ends_when_all_acked() -> None:
    rollout = baking()
    services.promote_now(rollout=rollout, actor=ANNA, now=database_now())
    tick_rollouts()
    rollout.refresh_from_db()
    assert rollout.phase == Phase.PROMOTING
    ack(rollout.generation)
    tick_rollouts()
    rollout.refresh_from_db()
    assert rollout.phase == Phase.SUCCEEDED
    assert latest().models["digits"].stable == "2"


@pytest.mark.parametrize("phase", sorted(LIVE_PHASES - {Phase.ROLLING_BACK}))
def test_abort_wins_from_every_live_phase_without_a_worker(phase: str) -> None:
    rollout = baking()
    if phase == Phase.PROMOTING:
        services.promote_now(rollout=rollout, actor=ANNA, now=database_now())
    Rollout.objects.filter(pk=rollout.pk).update(phase=phase)
    services.abort_rollout(rollout=rollout, actor=ANNA, now=database_now())
    rollout.refresh_from_db()
    assert rollout.phase == Phase.ROLLING_BACK
    assert latest().models["digits"].stable == "1"
    assert latest().models["digits"].split is None


def test_a_second_rollout_of_the_model_is_a_conflict() -> None:
    rollout = baking()
    target = rollout.model.versions.get(number=3)
    with pytest.raises(Conflict, match="live rollout"):
        services.start_rollout(model=rollout.model, target=target, actor=ANNA, now=database_now())


def test_what_is_stable_already_is_refused() -> None:
    model = make_model()
    make_plan()
    target = model.versions.get(number=1)
    with pytest.raises(Invalid, match="already the stable version"):
        services.start_rollout(model=model, target=target, actor=ANNA, now=database_now())


def test_it_refuses_a_stale_revision() -> None:
    rollout = baking()
    rollout.refresh_from_db()
    with pytest.raises(Conflict, match="changed in the meantime"):
        services.pause_rollout(
            rollout=rollout, actor=ANNA, now=database_now(), revision=rollout.revision - 1
        )


def test_rollback_is_one_table_in_the_same_call() -> None:
    rollout = baking()
    services.promote_now(rollout=rollout, actor=ANNA, now=database_now())
    ack(Rollout.objects.get(pk=rollout.pk).generation)
    tick_rollouts()
    back = services.rollback_model(model=rollout.model, actor=ANNA, now=database_now())
    assert back.phase == Phase.PROMOTING
    assert latest().models["digits"].stable == "1"
