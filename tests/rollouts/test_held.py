"""A rollout that is held: by instances, by a freeze. It gets no further, and stays guarded."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from apps.lib.clock import database_now
from apps.lib.errors import Conflict
from apps.rollouts.models import FreezeWindow, Rollout
from apps.rollouts.overrides import Override
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.services import promote_now, rollback_model, skip_step, start_rollout
from apps.rollouts.states import Phase
from apps.rollouts.tick import tick_rollouts
from tests.rollouts.factories import ANNA, make_baking, make_instance, make_model, make_person, send

pytestmark = pytest.mark.django_db


def turn(rollout: Rollout) -> Rollout:
    Rollout.objects.filter(next_check_at__isnull=False).update(next_check_at=database_now())
    tick_rollouts()
    rollout.refresh_from_db()
    return rollout


def freeze() -> None:
    now, hour = database_now(), timedelta(hours=1)
    FreezeWindow.objects.create(
        reason="Christmas",
        starts_at=now - hour,
        ends_at=now + hour,
        created_by="anna",
        created_at=now,
    )


def save_bare_plan() -> None:
    steps = (StepDocument(weight_bp=500, bake_s=0, checks=()),)
    save_plan(document=PlanDocument(name="bare", steps=steps), is_default=True, actor=ANNA)


def test_guardrails_go_on_while_an_instance_is_waited_for() -> None:
    rollout = make_baking(make_model())
    make_instance("up")
    make_instance("behind", applied_generation=0)
    assert "waiting for generation" in turn(rollout).reason
    at = rollout.started_at - timedelta(seconds=40)
    values = {"split": str(rollout.pk), "generation": rollout.generation, "interval_started_at": at}
    for seconds in range(1, 10, 2):
        window = {"at": at + timedelta(seconds=seconds), **values}
        send("digits", 2, variant="canary", unit_errors=60, **window)
        send("digits", 1, units=600, **window)
    assert turn(rollout).phase == Phase.ROLLING_BACK
    assert "error-rate" in rollout.reason


def test_a_target_that_was_loading_when_a_freeze_began_gets_no_traffic() -> None:
    save_bare_plan()
    model = make_model()
    target = model.versions.get(number=2)
    rollout = start_rollout(model=model, target=target, actor=ANNA, now=database_now())
    freeze()
    assert turn(turn(rollout)).phase == Phase.PREPARING
    assert "held by a freeze until" in rollout.reason


def test_a_first_version_waits_for_the_end_of_a_freeze_as_well() -> None:
    model = make_model(stable=None)
    target = model.versions.get(number=1)
    rollout = start_rollout(model=model, target=target, actor=ANNA, now=database_now())
    freeze()
    assert turn(turn(rollout)).phase == Phase.PREPARING


def test_who_overrode_the_freeze_goes_on() -> None:
    save_bare_plan()
    freeze()
    model = make_model()
    target, overrides = model.versions.get(number=2), [Override.FREEZE.value]
    ada, now = make_person("ada"), database_now()
    rollout = start_rollout(model=model, target=target, actor=ada, now=now, overrides=overrides)
    assert turn(turn(rollout)).phase == Phase.BAKING


def test_the_way_back_is_open_during_a_freeze() -> None:
    model = make_model(stable=2)
    model.previous_stable = model.versions.get(number=1)
    model.save()
    freeze()
    rollback_model(model=model, actor=ANNA, now=database_now())
    model.refresh_from_db()
    assert model.stable == model.versions.get(number=1)


@pytest.mark.parametrize("act", [promote_now, skip_step])
def test_no_hand_takes_a_rollout_further_during_a_freeze(act: Callable[..., Rollout]) -> None:
    rollout = make_baking(make_model())
    freeze()
    with pytest.raises(Conflict, match="digits is frozen until"):
        act(rollout=rollout, actor=ANNA, now=database_now())
    Rollout.objects.update(overrides=["freeze"])
    assert act(rollout=rollout, actor=ANNA, now=database_now()).weight_bp > 500
