"""The pages of plans, and what the form refuses."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from apps.models.models import AuditEntry, ModelRole, Role
from apps.rollouts.check_kinds import CheckDocument
from apps.rollouts.models import Plan
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plan_templates import TEMPLATES
from apps.rollouts.plans import PlanDocument, StepDocument, document_of, to_json
from tests.confirming import post_yes
from tests.rollouts.browser import form_in
from tests.rollouts.callers import rendered
from tests.rollouts.factories import ANNA, make_plan

pytestmark = pytest.mark.django_db

SETTINGS = {
    "name": "quick",
    "description": "",
    "time_scale": "0.5",
    "interval_s": "10",
    "extend_max": "3",
    "wait_max": "168",
    "margin": "1.5",
    "alpha": "0.1",
    "reference_requests_min": "5000",
    "latency_slack": "2",
    "evidence_mode": "any_regression",
    "control": "all",
    "final_bake": "0",
    "holdback": "0",
    "rollback_window": "24",
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
        ([("25", "1"), ("10", "1")], "share of 10 % is below the 25 % of the previous step"),
        ([("50", "1"), ("101", "1")], "must be between 0 and 100 %"),
        ([("0", "1")], "needs a share above 0 %"),
        ([("", "5")], "Enter the share of this step"),
        ([("50", "")], "Enter the bake time of this step"),
        ([("many", "1")], "Enter a number"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_precisely(
    boss: Client, steps: list[tuple[str, str]], message: str
) -> None:
    response = boss.post("/rollouts/plans/new/", form_of(*steps))

    assert response.status_code == 400
    assert message in rendered(response)
    assert not Plan.objects.exists()


def test_a_plan_of_the_same_name_is_refused(boss: Client) -> None:
    make_plan("quick")

    response = boss.post("/rollouts/plans/new/", form_of(("50", "1")))

    assert response.status_code == 409
    assert "already exists" in rendered(response)


def test_an_unknown_check_is_refused(boss: Client) -> None:
    response = boss.post(
        "/rollouts/plans/new/", form_of(("50", "1"), **{"form-0-checks": ["horoscope"]})
    )

    assert "horoscope" in rendered(response)
    assert not Plan.objects.exists()


def test_the_form_shows_a_plan_as_it_is_and_saving_it_changes_nothing(boss: Client) -> None:
    plan = make_plan(weights=(250, 10_000))

    text = rendered(boss.get(f"/rollouts/plans/{plan.pk}/edit/"))

    assert 'value="2.5"' in text
    assert 'value="30"' in text
    assert "Running rollouts keep the plan" in text


RICH = PlanDocument(
    name="rich",
    steps=(
        StepDocument(weight_bp=0, shadow_bp=1_250, bake_s=7, checks=("smoke",), gate="person"),
        # Not in the order of the marks, and one that needs a setting.
        StepDocument(
            weight_bp=333,
            bake_s=1_801,
            requests_min=12,
            checks=(
                "latency",
                "error-rate",
                CheckDocument(
                    check="latency-objective",
                    name="quick",
                    mode="signal",
                    on={"no-data": "pause"},
                    settings={"limit_us": 20_000},
                ),
                CheckDocument(check="latency", name="again"),
            ),
            gate="person",
            gate_role="admin",
        ),
        StepDocument(weight_bp=10_000, bake_s=0, checks=()),
    ),
    time_scale_permille=7,
    interval_s=3,
    extend_max=9,
    wait_max_s=5_400,
    margin_bp=9_999,
    alpha_ppm=1,
    reference_requests_min=1,
    latency_slack_us=1,
    evidence_mode="beyond_margin",
    control="equal",
    holdback_bp=125,
    final_bake_s=86_399,
    rollback_window_s=59,
)


@pytest.mark.parametrize("document", [RICH, *(each.document for each in TEMPLATES)])
def test_any_plan_passes_through_the_form_without_loss(
    boss: Client, document: PlanDocument
) -> None:
    plan = save_plan(document=document, description="x", is_default=True, actor=ANNA)
    before = to_json(document_of(plan))

    page = rendered(boss.get(f"/rollouts/plans/{plan.pk}/edit/"))
    response = boss.post(f"/rollouts/plans/{plan.pk}/edit/", form_in(page, "form-TOTAL_FORMS"))

    plan.refresh_from_db()
    assert response.status_code == 302, rendered(response)
    assert to_json(document_of(plan)) == before
    assert (plan.description, plan.is_default) == ("x", True)


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
        text = rendered(client.get(path))
        assert "18 s" in text
        assert "New plan" not in text


def test_only_an_admin_edits_plans(client: Client) -> None:
    user = User.objects.create_user("olga")
    ModelRole.objects.create(user=user, role=Role.OPERATOR)
    client.force_login(user)

    assert client.get("/rollouts/plans/new/").status_code == 403
    assert client.post("/rollouts/plans/new/", form_of(("50", "1"))).status_code == 403
    plan = make_plan()
    assert client.post(f"/rollouts/plans/{plan.pk}/delete/").status_code == 403
    assert 'id="delete-plan"' not in rendered(client.get(f"/rollouts/plans/{plan.pk}/"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"check": "latency-objective"}', "Line 1: check latency-objective: limit_us is required"),
        ('\n{"check": "horoscope"}', "Line 2: unknown kind &#x27;horoscope&#x27;"),
        ('{"check": "latency", "colour": 1}', "Line 1: Object contains unknown field `colour`"),
        ('{"check": "latency", "name": 3}', "Line 1: name: Expected `str`, got `int`"),
        ('{"check": ', "Line 1: not a valid JSON document"),
        ("latency", "Line 1: expected one JSON document"),
        (
            '"smoke"\n{"check": "error-objective", "settings": {"limit_bp": 0}}',
            "Line 2: check error-objective: limit_bp must be at least 1",
        ),
    ],
)
def test_a_check_that_is_none_is_refused_with_its_line_and_field(
    boss: Client, lines: str, message: str
) -> None:
    response = boss.post(
        "/rollouts/plans/new/", form_of(("50", "1"), **{"form-0-documents": lines})
    )

    assert response.status_code == 400
    assert message in rendered(response)
    assert not Plan.objects.exists()


def test_what_a_step_alone_cannot_see_is_refused_by_its_number(boss: Client) -> None:
    steps = form_of(("50", "1"), ("60", "1"), **{"form-1-checks": ["shadow-agreement"]})

    response = boss.post("/rollouts/plans/new/", steps)

    assert response.status_code == 400
    assert "Step 2: shadow-agreement requires copied requests" in rendered(response)


def test_a_mistake_among_the_advanced_fields_is_not_hidden(boss: Client) -> None:
    response = boss.post("/rollouts/plans/new/", form_of(("50", "1"), holdback="9"))

    assert '<details id="advanced" open>' in rendered(response)


def test_a_plan_is_copied_under_a_name_of_its_own(boss: Client) -> None:
    plan = save_plan(document=RICH, description="why", actor=ANNA)

    page = rendered(boss.get(f"/rollouts/plans/new/?copy={plan.pk}"))
    boss.post("/rollouts/plans/new/", form_in(page, "form-TOTAL_FORMS"))

    copy = Plan.objects.get(name="rich-copy")
    assert copy.description == "why"
    assert document_of(copy).steps == RICH.steps


def test_a_plan_begins_from_a_template(boss: Client) -> None:
    for name in ("blue-green", "blue-green-copy"):
        page = rendered(boss.get("/rollouts/plans/new/?template=blue-green"))
        boss.post("/rollouts/plans/new/?template=blue-green", form_in(page, "form-TOTAL_FORMS"))
        assert Plan.objects.filter(name=name).exists()

    assert "shadow-canary" in rendered(boss.get("/rollouts/plans/"))
    assert boss.get("/rollouts/plans/new/?template=nonsense").status_code == 404
    assert boss.get("/rollouts/plans/new/?copy=99").status_code == 404


def test_a_plan_is_deleted_but_not_the_default_one(boss: Client) -> None:
    default, other = make_plan("canary"), make_plan("other")
    assert 'id="delete-plan"' not in rendered(boss.get(f"/rollouts/plans/{default.pk}/"))

    refused = post_yes(boss, f"/rollouts/plans/{default.pk}/delete/", follow=True)
    deleted = post_yes(boss, f"/rollouts/plans/{other.pk}/delete/", follow=True)

    assert "is the default plan" in rendered(refused)
    assert "Plan other is deleted" in rendered(deleted)
    assert [plan.name for plan in Plan.objects.all()] == ["canary"]


def test_the_page_shows_checks_with_settings_gates_and_copies(boss: Client) -> None:
    plan = save_plan(document=RICH, actor=ANNA)

    text = rendered(boss.get(f"/rollouts/plans/{plan.pk}/"))

    assert "signal: limit_us 20000, no-data: pause" in text
    assert "admin approves" in text
    assert "12.5 %" in text
    assert "with 1.25 % held back" in text
    assert "a slice of stable as large as the canary" in text


def test_a_plan_shows_how_often_it_decides_wrongly(boss: Client) -> None:
    check = CheckDocument(check="error-threshold", settings={"margin_bp": 50})
    steps = (StepDocument(weight_bp=500, checks=(check,)), StepDocument(weight_bp=2_500))
    plan = save_plan(document=PlanDocument(name="rule", steps=steps), actor=ANNA)
    calm = make_plan("calm")
    asks_outside = CheckDocument(
        check="prometheus", settings={"query": "up", "at_least": 1}, name="up"
    )
    blind = save_plan(
        document=PlanDocument(
            name="blind", steps=(StepDocument(weight_bp=500, checks=(asks_outside,)),)
        ),
        actor=ANNA,
    )

    warned = rendered(boss.get(f"/rollouts/plans/{plan.pk}/"))
    form = rendered(boss.get("/rollouts/plans/new/"))

    assert re.search(r"roll back at most <b>[1-9][\d.]* %</b> of healthy versions", warned)
    assert "<b>1.00 %</b>" in rendered(boss.get(f"/rollouts/plans/{calm.pk}/"))
    unknown = rendered(boss.get(f"/rollouts/plans/{blind.pk}/"))
    assert "the error rates of these checks are unknown: up" in unknown
    assert "In a typical plan it rolls back" in form


def test_without_javascript_more_rows_are_shown_and_empty_ones_left_out(boss: Client) -> None:
    page = rendered(boss.get("/rollouts/plans/new/?rows=more"))
    sent = form_in(page, "form-TOTAL_FORMS") | {"name": "plain"}
    assert sent["form-TOTAL_FORMS"] == ["9"]

    boss.post("/rollouts/plans/new/", sent)

    assert Plan.objects.get().steps.count() == 4
