"""The history of a rollout in sentences: actors, durations of steps, and deciding checks."""

from __future__ import annotations

from datetime import timedelta

import pytest

from apps.lib.clock import database_now
from apps.rollouts.models import Rollout
from apps.rollouts.narrative import describe_history
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
    return [sentence.partition(" UTC: ")[2] or sentence for sentence in describe_history(rollout)]


def test_a_rollback_names_the_failed_check_and_its_rule() -> None:
    rollout = follow(
        {"weight_bp": 500, "bake_s": 600, "checks": ("error-rate", "latency")},
        {"weight_bp": 10_000},
    )
    turn(rollout)
    traffic(rollout, errors=300)
    turn(turn(rollout))

    sentences = without_times(rollout)

    assert "by plan mine in 2 steps (5 → 100 %)." in sentences[0]
    assert sentences[2] == "anna began step 1 of 2 at 5 %: the target is ready."
    assert sentences[3].endswith("its bake time is 10 min, from when all instances serve it.")
    assert sentences[4].startswith(
        "Check error-rate failed: error rate 33.3 % on the canary, 0.00 % on stable"
    )
    assert sentences[4].endswith(" [guardrail failed: roll back].")
    assert sentences[6].startswith("Interlock took all traffic off digits:2: error-rate: ")
    assert sentences[7] == "every instance serves without it."
    assert sentences[8].startswith("It ended rolled back after ")


def test_gates_pauses_and_skips_name_their_actors() -> None:
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

    sentences = without_times(rollout)

    assert "bea opened the gate of step 1: looks good." in sentences
    assert "Interlock began step 2 of 3 at 25 % and copies of 10 %: no checks." in sentences
    assert "anna paused it at 25 %: paused manually." in sentences
    assert "anna resumed it: resumed manually." in sentences
    assert "anna began step 3 of 3 at 100 %: step 2 skipped manually." in sentences
    assert sentences[-2].startswith("Step 3 has not started to bake")
    assert sentences[-1] == "Now it is baking: step 2 skipped manually."


def test_overrides_and_retries_are_described() -> None:
    first = make_baking(make_model())
    Rollout.objects.update(overrides=["freeze"], retry_of=first)
    first.refresh_from_db()

    sentences = without_times(first)

    assert sentences[1:3] == ["anna overrode: freeze.", f"It retries rollout {first.pk}."]


def test_a_baking_step_has_the_time_when_it_may_pass() -> None:
    rollout = turn(follow({"weight_bp": 500, "bake_s": 600}, {"weight_bp": 10_000}))
    assert rollout.step_due_at is not None

    sentences = describe_history(rollout)

    due = f"{rollout.step_due_at:%Y-%m-%d %H:%M:%S} UTC"
    assert f"Step 1 bakes and may pass from {due}; " in sentences[-2]


def test_a_rollout_without_a_plan_has_no_steps() -> None:
    model = make_model(stable=None)
    now = database_now()
    target = model.versions.get(number=1)
    rollout = start_rollout(model=model, target=target, actor=ANNA, now=now)

    assert len(describe_history(rollout)) == 2


def test_a_manual_rollback_is_described_in_order() -> None:
    model = make_model()
    model.previous_stable = model.versions.get(number=2)
    model.save()

    back = rollback_model(model=model, actor=ANNA, now=database_now(), reason="too slow")

    sentences = without_times(back)

    assert sentences[:2] == [
        "anna started it: Instant rollback to digits:2 from digits:1.",
        "anna began to prepare digits:2: too slow.",
    ]
    assert sentences[2].startswith("Interlock made digits:2 stable: instant rollback")
