"""Failed checks did not roll back while a confirmation was awaited, and inconclusive ones got stuck
(flagger #1801; argo-rollouts #261 #3015): a guardrail acts in every state, every hold has a reason.
"""

from __future__ import annotations

from datetime import timedelta

import pytest

from apps.lib.clock import database_now
from apps.rollouts import evaluation
from apps.rollouts.models import Rollout
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.services import pause_rollout
from apps.rollouts.stalls import TELL_AFTER, is_to_be_told
from apps.rollouts.states import Phase
from apps.rollouts.tick import tick_rollouts
from apps.rollouts.verdicts import CheckResult, Verdict
from tests.rollouts.factories import ANNA, make_baking, make_instance, make_model

pytestmark = pytest.mark.django_db


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Rollout:
    """Return a rollout whose step has passed and waits for a person."""
    step = StepDocument(weight_bp=500, bake_s=0, checks=("error-rate",), gate="person")
    plan = PlanDocument(name="gated", steps=(step,), wait_max_s=0)
    save_plan(document=plan, is_default=True, actor=ANNA)
    make_instance()
    rollout = make_baking(make_model())
    answer(monkeypatch, Verdict.PASS)
    turn(rollout)
    return turn(rollout)


def answer(monkeypatch: pytest.MonkeyPatch, verdict: Verdict) -> None:
    found = CheckResult("error-rate", verdict, f"it is {verdict}", {})
    monkeypatch.setattr(evaluation, "judge_checks", lambda inputs: [found])


def turn(rollout: Rollout) -> Rollout:
    Rollout.objects.filter(next_check_at__isnull=False).update(next_check_at=database_now())
    tick_rollouts()
    rollout.refresh_from_db()
    return rollout


def test_a_failed_check_rolls_back_while_a_person_is_waited_for(
    waiting: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "waiting for approval by a person" in waiting.reason
    answer(monkeypatch, Verdict.FAIL)
    assert turn(waiting).phase == Phase.ROLLING_BACK


def test_a_failed_check_rolls_back_what_is_paused(
    waiting: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    pause_rollout(rollout=waiting, actor=ANNA, now=database_now())
    turn(waiting)
    answer(monkeypatch, Verdict.FAIL)
    assert turn(waiting).phase == Phase.ROLLING_BACK


@pytest.mark.parametrize("verdict", sorted(set(Verdict) - {Verdict.PASS, Verdict.FAIL}))
def test_what_cannot_be_decided_ends_with_a_person_and_a_reason(
    waiting: Rollout, monkeypatch: pytest.MonkeyPatch, verdict: Verdict
) -> None:
    answer(monkeypatch, verdict)
    assert turn(waiting).phase == Phase.PAUSED
    assert (
        waiting.reason
        == f"no decision within the time limit: error-rate is {verdict}: it is {verdict}"
    )


def test_people_are_told_of_what_is_held_for_long(waiting: Rollout) -> None:
    now = database_now()
    assert not is_to_be_told(waiting, now)
    assert is_to_be_told(waiting, now + TELL_AFTER + timedelta(seconds=1))
