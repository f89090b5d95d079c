"""What a plan may say, and that it survives being stored."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from apps.lib.errors import Conflict, Invalid
from apps.rollouts.check_kinds import CheckDocument
from apps.rollouts.models import Plan
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import (
    PlanDocument,
    StepDocument,
    check_plan,
    document_of,
    from_json,
    to_json,
)
from tests.rollouts.factories import ANNA, make_plan


def plan(*weights: int, checks: tuple[str, ...] = ("error-rate",), **fields: int) -> PlanDocument:
    steps = tuple(StepDocument(weight_bp=w, bake_s=60, checks=checks) for w in weights)
    return PlanDocument(name="careful", steps=steps, **fields)


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ((), "has no steps"),
        ((0,), "Step 1: the last step gives the target no traffic"),
        ((500, 10_001), "Step 2: its share must lie between 0 and 100 %"),
        ((-1, 500), "Step 1: its share must lie between 0 and 100 %"),
        ((2_500, 500), "Step 2: its share of 5 % falls below the 25 % before it"),
    ],
)
def test_it_refuses_steps_that_fall_or_lead_nowhere(weights: tuple[int, ...], told: str) -> None:
    with pytest.raises(Invalid, match=told):
        check_plan(plan(*weights))


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ({"checks": ("smoke", "latency")}, "Step 1: .* no traffic, so latency could never pass"),
        ({"checks": (), "requests_min": 1}, "Step 1: .* no traffic, so requests_min must be 0"),
    ],
)
def test_a_step_without_traffic_waits_for_none(step: dict[str, Any], told: str) -> None:
    steps = (StepDocument(weight_bp=0, **step), StepDocument(weight_bp=500))
    with pytest.raises(Invalid, match=told):
        check_plan(PlanDocument(name="never", steps=steps))


def test_a_step_without_traffic_may_record_and_ask_others() -> None:
    checks = ("smoke", CheckDocument(check="error-rate", mode="dry-run"))
    steps = (StepDocument(weight_bp=0, checks=checks), StepDocument(weight_bp=500))
    check_plan(PlanDocument(name="blue-green", steps=steps))


def test_the_final_bake_compares_no_copies() -> None:
    step = StepDocument(weight_bp=500, shadow_bp=500, checks=("latency", "shadow-agreement"))
    followed = PlanDocument(name="last", steps=(step,), final_bake_s=60).as_followed()
    assert [check.check for check in followed.steps[-1].questions] == ["latency"]


def test_it_refuses_an_unknown_check_and_names_the_known() -> None:
    with pytest.raises(
        Invalid, match=r"unknown check 'luck'.*error-rate, latency, unanswered, sample-ratio"
    ):
        check_plan(plan(500, checks=("luck",)))


def test_a_plan_survives_being_stored_in_a_rollout() -> None:
    stored = plan(500, 10_000, margin_bp=50)
    assert from_json(to_json(stored)) == stored


def test_the_time_scale_shortens_bakes() -> None:
    assert plan(500, time_scale_permille=10).bake_of(0) == timedelta(milliseconds=600)


def test_alpha_is_shared_among_the_checks_that_may_roll_back() -> None:
    assert plan(500, checks=("error-rate", "latency", "sample-ratio")).guardrails == 2
    assert plan(500, checks=()).guardrails == 1


@pytest.mark.django_db
def test_a_saved_plan_reads_back_as_it_was() -> None:
    document = plan(500, 10_000, interval_s=3)
    assert document_of(save_plan(document=document, actor=ANNA)) == document


@pytest.mark.django_db
def test_only_one_plan_is_the_default_one() -> None:
    make_plan("first")
    save_plan(document=plan(500), is_default=True, actor=ANNA)
    assert [p.name for p in Plan.objects.filter(is_default=True)] == ["careful"]


@pytest.mark.django_db
def test_a_second_plan_of_a_name_is_a_conflict() -> None:
    save_plan(document=plan(500), actor=ANNA)
    with pytest.raises(Conflict, match="careful already exists"):
        save_plan(document=plan(500), actor=ANNA)
