"""Failed checks did not roll back while a confirmation was awaited, and inconclusive ones got stuck
(flagger #1801; argo-rollouts #261 #3015). Here guardrails act in every state, holds have reasons.
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
from apps.rollouts.stalls import NOTIFY_AFTER, is_notification_due
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
    set_verdict(monkeypatch, Verdict.PASS)
    turn(rollout)
    return turn(rollout)


def set_verdict(monkeypatch: pytest.MonkeyPatch, verdict: Verdict) -> None:
    result = CheckResult("error-rate", verdict, f"it is {verdict}", {})
    monkeypatch.setattr(evaluation, "judge_checks", lambda inputs: [result])


def turn(rollout: Rollout) -> Rollout:
    Rollout.objects.filter(next_check_at__isnull=False).update(next_check_at=database_now())
    tick_rollouts()
    rollout.refresh_from_db()
    return rollout


def test_a_failed_check_rolls_back_while_it_waits_for_a_person(
    waiting: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "waiting for approval by a person" in waiting.reason
    set_verdict(monkeypatch, Verdict.FAIL)
    assert turn(waiting).phase == Phase.ROLLING_BACK


def test_a_failed_check_rolls_back_a_paused_rollout(
    waiting: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    pause_rollout(rollout=waiting, actor=ANNA, now=database_now())
    turn(waiting)
    set_verdict(monkeypatch, Verdict.FAIL)
    assert turn(waiting).phase == Phase.ROLLING_BACK


@pytest.mark.parametrize("verdict", sorted(set(Verdict) - {Verdict.PASS, Verdict.FAIL}))
def test_an_undecided_step_pauses_for_a_person_with_a_reason(
    waiting: Rollout, monkeypatch: pytest.MonkeyPatch, verdict: Verdict
) -> None:
    set_verdict(monkeypatch, verdict)
    assert turn(waiting).phase == Phase.PAUSED
    assert (
        waiting.reason
        == f"no decision within the time limit: error-rate is {verdict}: it is {verdict}"
    )


def test_people_are_notified_of_a_long_hold(waiting: Rollout) -> None:
    now = database_now()
    assert not is_notification_due(waiting, now)
    assert is_notification_due(waiting, now + NOTIFY_AFTER + timedelta(seconds=1))
