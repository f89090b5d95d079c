"""What a plan's strategy makes of the routing table, step by step."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from apps.lib.clock import database_now
from apps.rollouts.models import ObservedInterval, Quarantine, Rollout
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.services import approve_step, promote_now, rollback_model, skip_step
from apps.rollouts.states import Phase
from apps.rollouts.tick import tick_rollouts
from contract.routing import CanarySplit
from tests.rollouts.factories import (
    ANNA,
    latest,
    make_baking,
    make_instance,
    make_model,
    make_person,
    send,
)

pytestmark = pytest.mark.django_db


def follow(*steps: dict[str, Any], **plan: Any) -> Rollout:
    """Return a rollout at the first of these steps; they bake for no time and check nothing."""
    documents = tuple(StepDocument(**{"bake_s": 0, "checks": (), **step}) for step in steps)
    save_plan(
        document=PlanDocument(name="mine", steps=documents, **plan), is_default=True, actor=ANNA
    )
    make_instance()
    return make_baking(make_model())


def turn(rollout: Rollout) -> Rollout:
    Rollout.objects.filter(next_check_at__isnull=False).update(next_check_at=database_now())
    tick_rollouts()
    rollout.refresh_from_db()
    return rollout


def split() -> CanarySplit:
    split = latest().models["digits"].split
    assert isinstance(split, CanarySplit)
    return split


def pass_step(rollout: Rollout) -> Rollout:
    """Start the clock of the step, and let it pass."""
    return turn(turn(rollout))


def test_blue_green_serves_nobody_at_0_and_then_everybody() -> None:
    rollout = follow({"weight_bp": 0}, {"weight_bp": 10_000})
    route = latest().models["digits"]
    assert split().weight_bp == 0
    assert "2" in route.versions
    assert route.stable == "1"
    pass_step(rollout)
    assert split().weight_bp == 10_000
    pass_step(rollout)
    assert (latest().models["digits"].stable, latest().models["digits"].split) == ("2", None)


def test_a_shadow_gets_copies_and_no_traffic_until_its_step_is_over() -> None:
    rollout = follow({"weight_bp": 0, "shadow_bp": 1_000}, {"weight_bp": 500})
    shadow = latest().models["digits"].shadow
    assert shadow is not None
    assert (shadow.version, shadow.share_bp, split().weight_bp) == ("2", 1_000, 0)
    assert shadow.salt != split().salt
    pass_step(rollout)
    assert (latest().models["digits"].shadow, split().weight_bp) == (None, 500)


@pytest.mark.parametrize(
    ("weight_bp", "baseline_bp"), [(500, 500), (5_000, 5_000), (7_500, 2_500), (10_000, 0)]
)
def test_an_equal_baseline_is_as_large_as_the_canary_where_it_can(
    weight_bp: int, baseline_bp: int
) -> None:
    follow({"weight_bp": weight_bp}, control="equal")
    assert split().baseline_bp == baseline_bp


def test_who_is_held_back_stays_on_stable_until_the_final_bake_is_over() -> None:
    rollout = follow({"weight_bp": 10_000}, holdback_bp=200, final_bake_s=1, time_scale_permille=1)
    shares = [split().weight_bp]
    for _ in range(10):
        if turn(rollout).phase == Phase.SUCCEEDED:
            break
        shares += [split().weight_bp] if rollout.phase == Phase.BAKING else []
    assert set(shares) == {9_800}
    assert rollout.step_index == 1
    assert latest().models["digits"].stable == "2"


def test_the_version_before_stays_loaded_for_the_plans_rollback_window() -> None:
    rollout = follow({"weight_bp": 10_000}, rollback_window_s=3_600)
    now = database_now()
    promote_now(rollout=rollout, actor=ANNA, now=now)
    rollout.model.refresh_from_db()
    assert rollout.model.rollback_until is not None
    assert (rollout.model.rollback_until - now).total_seconds() == 3_600


def test_a_gate_waits_for_its_person_and_then_passes() -> None:
    rollout = follow({"weight_bp": 500, "gate": "person"}, {"weight_bp": 10_000})
    pass_step(rollout)
    assert (rollout.weight_bp, rollout.phase) == (500, Phase.BAKING)
    assert "waiting for approval by a person (operator)" in rollout.reason
    approve_step(rollout=rollout, actor=make_person("bea"), now=database_now())
    assert turn(rollout).weight_bp == 10_000


def test_a_step_that_is_skipped_leaves_no_clock_behind() -> None:
    rollout = turn(follow({"weight_bp": 500, "bake_s": 60}, {"weight_bp": 10_000}))
    row = skip_step(rollout=rollout, actor=ANNA, now=database_now())
    assert (row.weight_bp, row.step_started_at, row.step_due_at) == (10_000, None, None)
    assert not ObservedInterval.objects.exists()


def test_a_rollback_puts_what_it_leaves_into_quarantine() -> None:
    rollout = follow({"weight_bp": 10_000})
    promote_now(rollout=rollout, actor=ANNA, now=database_now())
    turn(rollout)
    assert not Quarantine.objects.exists()
    back = rollback_model(model=rollout.model, actor=ANNA, now=database_now(), reason="slow")
    assert back.phase == Phase.PROMOTING
    held = Quarantine.objects.get()
    assert (held.version, held.rollout) == (rollout.target, back)


def test_steps_of_the_same_share_share_no_evidence() -> None:
    rollout = follow({"weight_bp": 500}, {"weight_bp": 500})
    turn(rollout)
    at = database_now() - timedelta(seconds=40)
    values = {"split": str(rollout.pk), "generation": rollout.generation, "at": at}
    send("digits", 2, variant="canary", interval_started_at=at, **values)
    turn(rollout)
    turn(turn(rollout))
    assert rollout.step_generations[0] < rollout.step_generations[1]
    assert list(rollout.intervals.values_list("step_index", flat=True)) == [0]
