"""The story of a rollout: who did what, how long each step took, and what decided it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from apps.lib.clock import database_now
from apps.rollouts.models import Rollout
from apps.rollouts.narrative import tell_story
from apps.rollouts.services import (
    approve_step,
    pause_rollout,
    resume_rollout,
    rollback_model,
    skip_step,
    start_rollout,
)
from tests.rollouts.factories import ANNA, make_baking, make_model, make_person, send
from tests.rollouts.test_strategies import follow, turn

pytestmark = pytest.mark.django_db


def traffic(rollout: Rollout, errors: int) -> None:
    for ago_s in range(30, 330, 10):
        for variant, number in (("canary", 2), ("stable", 1)):
            at = rollout.started_at - timedelta(seconds=ago_s)
            send(
                "digits",
                number,
                at=at,
                interval_started_at=at,
                variant=variant,
                split=str(rollout.pk),
                generation=rollout.generation,
                units=900,
                unit_errors=errors if variant == "canary" else 0,
            )


def without_times(rollout: Rollout) -> list[str]:
    return [sentence.partition(" UTC: ")[2] or sentence for sentence in tell_story(rollout)]


def test_a_rollback_tells_what_was_found_and_which_rule_led_to_it() -> None:
    rollout = follow(
        {"weight_bp": 500, "bake_s": 600, "checks": ("error-rate", "latency")},
        {"weight_bp": 10_000},
    )
    turn(rollout)
    traffic(rollout, errors=300)
    turn(turn(rollout))

    told = without_times(rollout)

    assert "by plan mine in 2 steps (5 → 100 %)." in told[0]
    assert told[2] == "anna began step 1 of 2 at 5 %: the target is ready."
    assert told[3].endswith("the plan asks for 10 min from when all serve it.")
    assert told[4].startswith("There error-rate failed: error rate 33.3% vs stable 0.00%")
    assert told[4].endswith(" [guardrail failed: roll back].")
    assert told[6].startswith("Interlock took all traffic off digits:2: error-rate: ")
    assert told[7] == "every instance serves without it."
    assert told[8].startswith("It ended rolled back after ")


def test_gates_pauses_and_skips_tell_who_did_them() -> None:
    rollout = follow(
        {"weight_bp": 500, "gate": "person"},
        {"weight_bp": 2_500, "shadow_bp": 1_000, "bake_s": 600},
        {"weight_bp": 10_000, "bake_s": 600},
    )
    turn(turn(rollout))
    approve_step(rollout=rollout, actor=make_person("bea"), now=database_now(), reason="looks good")
    turn(rollout)
    for act in (pause_rollout, resume_rollout, skip_step):
        act(rollout=rollout, actor=ANNA, now=database_now())
        rollout.refresh_from_db()

    told = without_times(rollout)

    assert "bea opened the gate of step 1: looks good." in told
    assert "Interlock began step 2 of 3 at 25 % and copies of 10 %: no checks." in told
    assert "anna paused it at 25 %: paused manually." in told
    assert "anna let it go on: resumed manually." in told
    assert "anna began step 3 of 3 at 100 %: step 2 skipped manually." in told
    assert told[-2].startswith("Step 3 has not begun to bake")
    assert told[-1] == "Now it is baking: step 2 skipped manually."


def test_overrides_and_what_is_tried_again_are_told() -> None:
    first = make_baking(make_model())
    Rollout.objects.update(overrides=["freeze"], retry_of=first)
    first.refresh_from_db()

    told = without_times(first)

    assert told[1:3] == ["anna overrode: freeze.", f"It tries rollout {first.pk} again."]


def test_a_step_that_bakes_tells_when_it_may_pass() -> None:
    rollout = turn(follow({"weight_bp": 500, "bake_s": 600}, {"weight_bp": 10_000}))
    assert rollout.step_due_at is not None

    told = tell_story(rollout)

    due = f"{rollout.step_due_at:%Y-%m-%d %H:%M:%S} UTC"
    assert f"Step 1 bakes and may pass from {due}; " in told[-2]


def test_what_has_no_plan_has_no_steps_to_tell_of() -> None:
    model = make_model(stable=None)
    now = database_now()
    target = model.versions.get(number=1)
    rollout = start_rollout(model=model, target=target, actor=ANNA, now=now)

    assert len(tell_story(rollout)) == 2


def test_a_rollback_by_hand_is_told_in_order() -> None:
    model = make_model()
    model.previous_stable = model.versions.get(number=2)
    model.save()

    back = rollback_model(model=model, actor=ANNA, now=database_now(), reason="too slow")

    told = without_times(back)

    assert told[:2] == [
        "anna started it: Instant rollback to digits:2 from digits:1.",
        "anna began to prepare digits:2: too slow.",
    ]
    assert told[2].startswith("Interlock made digits:2 stable: instant rollback")
