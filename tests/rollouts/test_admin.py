"""The admin of rollouts is for looking; plans may be edited, by the rule."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from apps.models.models import AuditEntry
from apps.rollouts.models import Plan
from apps.rollouts.states import Phase
from tests.rollouts.factories import judge, make_baking, make_instance, make_model, make_plan

pytestmark = pytest.mark.django_db


@pytest.fixture
def root(client: Client) -> Client:
    client.force_login(User.objects.create_superuser("root"))
    return client


@pytest.mark.parametrize(
    "name",
    [
        "plan",
        "rollout",
        "evaluation",
        "publishedtable",
        "instance",
        "breakertriprecord",
        "release",
        "quarantine",
        "freezewindow",
        "rolloutpolicy",
        "servingchange",
        "trafficalarm",
    ],
)
def test_each_list_opens(root: Client, name: str) -> None:
    judge(make_baking(make_model()), "latency", "pass", "fine")
    make_instance()

    assert root.get(reverse(f"admin:rollouts_{name}_changelist")).status_code == 200


def test_a_phase_cannot_be_edited(root: Client) -> None:
    rollout = make_baking(make_model())
    page = reverse("admin:rollouts_rollout_change", args=[rollout.pk])

    assert root.get(page).status_code == 200
    response = root.post(page, {"phase": Phase.SUCCEEDED})

    rollout.refresh_from_db()
    assert (response.status_code, rollout.phase) == (403, Phase.BAKING)


def test_a_published_table_shows_its_document(root: Client) -> None:
    make_baking(make_model())

    text = root.get(reverse("admin:rollouts_publishedtable_change", args=[1])).content.decode()

    assert "weight_bp" in text


def plan_form(plan: Plan, *weights: int) -> dict[str, Any]:
    fields = {
        name: getattr(plan, name)
        for name in (
            "name",
            "description",
            "time_scale_permille",
            "interval_s",
            "extend_max",
            "wait_max_s",
            "margin_bp",
            "alpha_ppm",
            "reference_requests_min",
            "latency_slack_us",
            "evidence_mode",
            "control",
            "holdback_bp",
            "final_bake_s",
            "rollback_window_s",
        )
    }
    steps = list(plan.steps.all())
    rows: dict[str, Any] = {"steps-TOTAL_FORMS": len(steps), "steps-INITIAL_FORMS": len(steps)}
    for at, (step, weight_bp) in enumerate(zip(steps, weights, strict=True)):
        rows |= {f"steps-{at}-id": step.pk, f"steps-{at}-plan": plan.pk}
        rows |= {f"steps-{at}-position": at, f"steps-{at}-weight_bp": weight_bp}
        rows |= {f"steps-{at}-bake_s": 60, f"steps-{at}-requests_min": 0}
        rows |= {f"steps-{at}-shadow_bp": 0, f"steps-{at}-gate": step.gate}
        rows |= {f"steps-{at}-gate_role": step.gate_role}
        rows |= {f"steps-{at}-checks": '["latency"]'}
    return fields | rows


def test_steps_are_edited_inline(root: Client) -> None:
    plan = make_plan(weights=(500, 10_000))

    root.post(reverse("admin:rollouts_plan_change", args=[plan.pk]), plan_form(plan, 700, 9_000))

    assert [step.weight_bp for step in plan.steps.all()] == [700, 9_000]
    entry = AuditEntry.objects.get(action="plan.changed")
    assert (entry.actor, entry.after["steps"][0]["weight_bp"]) == ("root", 700)


def test_a_plan_is_not_deleted_here(root: Client) -> None:
    plan = make_plan()

    page = reverse("admin:rollouts_plan_delete", args=[plan.pk])

    assert root.post(page, {"post": "yes"}).status_code == 403
    assert Plan.objects.exists()


@pytest.mark.parametrize(("field", "value"), [("holdback_bp", 50), ("evidence_mode", "hope")])
def test_settings_are_held_to_the_rule_too(root: Client, field: str, value: Any) -> None:
    plan = make_plan(weights=(500, 10_000))
    form = {**plan_form(plan, 700, 9_000), field: value}

    root.post(reverse("admin:rollouts_plan_change", args=[plan.pk]), form)

    plan.refresh_from_db()
    assert getattr(plan, field) != value


def test_steps_that_fall_are_refused(root: Client) -> None:
    plan = make_plan(weights=(500, 10_000))

    response = root.post(
        reverse("admin:rollouts_plan_change", args=[plan.pk]), plan_form(plan, 700, 600)
    )

    assert "is below the" in response.content.decode()
    assert [step.weight_bp for step in plan.steps.all()] == [500, 10_000]
