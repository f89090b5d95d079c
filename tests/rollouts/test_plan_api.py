"""Plans by the REST API: all settings, templates, and typos that are refused by name."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client

from apps.lib.clock import database_now
from apps.rollouts.models import Plan
from tests.rollouts.factories import make_model, make_plan, send
from tests.rollouts.test_api import client

pytestmark = pytest.mark.django_db
PLANS = "/api/v1/plans/"


def post(caller: Client, body: dict[str, Any]) -> Any:
    return caller.post(PLANS, body, content_type="application/json")


def test_each_template_is_a_plan_and_comes_back_as_it_was_sent() -> None:
    caller = client("admin")
    templates = caller.get("/api/v1/plan-templates/").json()
    for template in templates:
        assert post(caller, template).status_code == 201
        again = {**caller.get(f"{PLANS}{template['name']}/").json(), "name": "copy"}
        assert post(caller, again).json() == again
        assert caller.delete(f"{PLANS}copy/").status_code == 204
    assert len(templates) == 6


def test_a_plans_risks_are_given_check_by_check() -> None:
    make_plan("usual")

    risks = client("viewer").get(f"{PLANS}usual/risks/").json()

    assert risks["false_rollback"] == pytest.approx(0.01)
    assert [check["basis"] for check in risks["checks"]] == ["bounded"] * len(risks["checks"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"margin": 1, "steps": [{"weight_bp": 1}]}, "margin"),
        ({"steps": [{"weight_bp": 1, "weigth": 2}]}, "weigth"),
        ({"steps": [{"weight_bp": 1, "checks": [{"check": "latency", "modus": 1}]}]}, "modus"),
        ({"steps": [{"weight_bp": 1, "checks": ["latenzy"]}]}, "latenzy"),
        ({"steps": [{"weight_bp": 1, "checks": [[1]]}]}, "checks[0]"),
        ({"steps": [{"weight_bp": 1}] * 101}, "steps"),
        ({"steps": []}, "has no steps"),
    ],
)
def test_what_is_not_known_is_named(body: dict[str, Any], message: str) -> None:
    answer = post(client("admin"), {"name": "p", **body})
    assert answer.status_code == 400
    assert message in answer.content.decode()
    assert not Plan.objects.exists()


def test_the_default_plan_is_not_deleted() -> None:
    make_plan()
    assert client("admin").delete(f"{PLANS}canary/").status_code == 409


def test_an_operator_changes_no_plan() -> None:
    make_plan()
    caller = client()
    answers = [
        post(caller, {"name": "p", "steps": [{"weight_bp": 1}]}),
        caller.put(f"{PLANS}canary/", {}, content_type="application/json"),
        caller.delete(f"{PLANS}canary/"),
    ]
    assert [answer.status_code for answer in answers] == [403, 403, 403]


def test_a_change_reaches_the_next_rollout_and_says_all_it_was_told() -> None:
    make_plan()
    caller = client("admin")
    body = caller.get(f"{PLANS}canary/").json()
    step = {"weight_bp": 500, "shadow_bp": 100, "gate": "person", "gate_role": "admin"}
    changed = {**body, "control": "equal", "evidence_mode": "beyond_margin", "steps": [step]}
    result = caller.put(f"{PLANS}canary/", changed, content_type="application/json").json()
    assert {**result, "steps": []} == {**changed, "steps": [], "notices": []}
    assert step.items() <= result["steps"][0].items()
    assert caller.get(f"{PLANS}canary/").json() == result


def test_another_plan_becomes_the_default_one() -> None:
    make_plan()
    caller = client("admin")
    post(caller, {"name": "new", "is_default": True, "steps": [{"weight_bp": 1}]})
    assert caller.get(f"{PLANS}canary/").json()["is_default"] is False
    assert caller.delete(f"{PLANS}canary/").status_code == 204


def test_a_plan_says_how_long_it_takes_at_a_models_traffic() -> None:
    make_plan()
    make_model()
    caller = client("viewer")
    assert caller.get(f"{PLANS}canary/times/?model=digits").json() == []
    for minutes in (1, 300, 600):
        send("digits", 1, at=database_now() - timedelta(minutes=minutes), requests=7_200)
    (time,) = caller.get(f"{PLANS}canary/times/?model=digits").json()
    assert time["period"] == "the last 10 h"
    assert time["rate"] == "36 requests per minute"
    assert [step["number"] for step in time["steps"]] == [1, 2, 3]
    assert "needs about" in time["steps"][0]["summary"]


@pytest.mark.parametrize(
    ("query", "status"),
    [("per_second=5", 200), ("per_second=x", 400), ("per_second=-1", 400), ("model=none", 404)],
)
def test_a_rate_may_be_named_instead(query: str, status: int) -> None:
    make_plan()
    assert client("viewer").get(f"{PLANS}canary/times/?{query}").status_code == status


def test_a_step_without_a_control_is_noticed_in_the_answer() -> None:
    saved = post(client("admin"), {"name": "whole", "steps": [{"weight_bp": 10_000}]}).json()
    assert "stable gets none to compare with" in saved["notices"][0]
