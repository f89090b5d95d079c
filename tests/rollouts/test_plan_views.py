"""The pages of plans, and what the form refuses."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from apps.models.models import AuditEntry, ModelRole, Role
from apps.rollouts.models import Plan
from tests.rollouts.factories import make_plan

pytestmark = pytest.mark.django_db

SETTINGS = {
    "name": "quick",
    "description": "",
    "time_scale": "0.5",
    "interval_s": "10",
    "extend_max": "3",
    "margin": "1.5",
    "alpha": "0.1",
    "reference_requests_min": "5000",
    "latency_slack": "2",
}


@pytest.fixture
def boss(client: Client) -> Client:
    user = User.objects.create_user("boss")
    ModelRole.objects.create(user=user, role=Role.ADMIN)
    client.force_login(user)
    return client


def form_of(*steps: tuple[str, str], **more: Any) -> dict[str, Any]:
    rows = {"form-TOTAL_FORMS": len(steps), "form-INITIAL_FORMS": 0}
    for at, (weight, bake) in enumerate(steps):
        rows |= {f"form-{at}-weight": weight, f"form-{at}-bake": bake}
        rows |= {f"form-{at}-checks": ["error-rate"]}
    return SETTINGS | rows | more


def test_a_plan_is_made_as_it_was_asked_for(boss: Client) -> None:
    response = boss.post("/rollouts/plans/new/", form_of(("2.5", "1.5"), ("", ""), ("100", "10")))

    plan = Plan.objects.get()
    steps = [(s.position, s.weight_bp, s.bake_s, s.checks) for s in plan.steps.all()]
    assert response.headers["location"] == f"/rollouts/plans/{plan.pk}/"
    assert steps == [(0, 250, 90, ["error-rate"]), (1, 10_000, 600, ["error-rate"])]
    assert (plan.margin_bp, plan.alpha_ppm, plan.latency_slack_us) == (150, 1_000, 2_000)
    assert AuditEntry.objects.filter(action="plan.created", target="quick").exists()


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "has no steps"),
        ([("25", "1"), ("10", "1")], "10 % falls below the 25 % before it"),
        ([("50", "1"), ("101", "1")], "must lie between 0 and 100 %"),
        ([("0", "1")], "gives the target no traffic"),
        ([("", "5")], "Say which share this step gets"),
        ([("50", "")], "Say how long this step bakes"),
        ([("many", "1")], "Enter a number"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_precisely(
    boss: Client, steps: list[tuple[str, str]], message: str
) -> None:
    response = boss.post("/rollouts/plans/new/", form_of(*steps))

    assert response.status_code == 400
    assert message in response.content.decode()
    assert not Plan.objects.exists()


def test_a_plan_of_the_same_name_is_refused(boss: Client) -> None:
    make_plan("quick")

    response = boss.post("/rollouts/plans/new/", form_of(("50", "1")))

    assert response.status_code == 409
    assert "exists already" in response.content.decode()


def test_an_unknown_check_is_refused(boss: Client) -> None:
    response = boss.post(
        "/rollouts/plans/new/", form_of(("50", "1"), **{"form-0-checks": ["horoscope"]})
    )

    assert "horoscope" in response.content.decode()
    assert not Plan.objects.exists()


def test_the_form_shows_a_plan_as_it_is_and_saving_it_changes_nothing(boss: Client) -> None:
    plan = make_plan(weights=(250, 10_000))

    text = boss.get(f"/rollouts/plans/{plan.pk}/edit/").content.decode()

    assert 'value="2.5"' in text
    assert 'value="30"' in text
    assert "Running rollouts keep the plan" in text


def test_another_plan_becomes_the_default_one(boss: Client) -> None:
    old = make_plan("canary")

    boss.post("/rollouts/plans/new/", form_of(("50", "1"), is_default="on"))

    old.refresh_from_db()
    assert not old.is_default
    assert Plan.objects.get(is_default=True).name == "quick"


def test_the_list_and_the_page_show_scaled_times(client: Client) -> None:
    plan = make_plan()
    Plan.objects.update(time_scale_permille=10)
    client.force_login(User.objects.create_user("vera"))

    for path in ("/rollouts/plans/", f"/rollouts/plans/{plan.pk}/"):
        text = client.get(path).content.decode()
        assert "18 s" in text
        assert "New plan" not in text


def test_only_an_admin_edits_plans(client: Client) -> None:
    user = User.objects.create_user("olga")
    ModelRole.objects.create(user=user, role=Role.OPERATOR)
    client.force_login(user)

    assert client.get("/rollouts/plans/new/").status_code == 403
    assert client.post("/rollouts/plans/new/", form_of(("50", "1"))).status_code == 403
