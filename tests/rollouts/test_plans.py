"""Valid plans, and their JSON."""

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
    ("weights", "message"),
    [
        ((), "has no steps"),
        ((0,), "Step 1: the last step needs a share above 0 %"),
        ((500, 10_001), "Step 2: the share must be between 0 and 100 %"),
        ((-1, 500), "Step 1: the share must be between 0 and 100 %"),
        ((2_500, 500), "Step 2: the share of 5 % is below the 25 % of the previous step"),
    ],
)
def test_decreasing_or_empty_steps_are_refused(weights: tuple[int, ...], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        check_plan(plan(*weights))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            {"checks": ("smoke", "latency")},
            "Step 1: latency can never pass, since the target gets no",
        ),
        (
            {"checks": (), "requests_min": 1},
            "Step 1: requests_min must be 0 where the target gets no",
        ),
    ],
)
def test_a_step_without_traffic_requires_none(step: dict[str, Any], message: str) -> None:
    steps = (StepDocument(weight_bp=0, **step), StepDocument(weight_bp=500))
    with pytest.raises(Invalid, match=message):
        check_plan(PlanDocument(name="never", steps=steps))


def test_a_step_without_traffic_may_have_dry_runs_and_other_checks() -> None:
    checks = ("smoke", CheckDocument(check="error-rate", mode="dry-run"))
    steps = (StepDocument(weight_bp=0, checks=checks), StepDocument(weight_bp=500))
    check_plan(PlanDocument(name="blue-green", steps=steps))


def test_the_final_bake_compares_no_copies() -> None:
    step = StepDocument(weight_bp=500, shadow_bp=500, checks=("latency", "shadow-agreement"))
    followed = PlanDocument(name="last", steps=(step,), final_bake_s=60).as_followed()
    assert [check.check for check in followed.steps[-1].check_documents] == ["latency"]


def test_an_unknown_check_is_refused_with_the_known_kinds() -> None:
    with pytest.raises(
        Invalid, match=r"unknown kind 'luck'.*error-rate, latency, unanswered, sample-ratio"
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
