"""The rollout page's gate, overrides and release, and what may be done: skip, approve, retry."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from apps.lib.clock import database_now
from apps.models.models import ModelRole, Role
from apps.rollouts.models import Quarantine, Rollout
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.releases import start_release
from apps.rollouts.services import abort_rollout, pause_rollout
from apps.rollouts.states import Phase
from apps.rollouts.tick import tick_rollouts
from tests.confirming import post_yes
from tests.rollouts.callers import rendered
from tests.rollouts.factories import (
    ANNA,
    judge,
    make_baking,
    make_instance,
    make_model,
    make_plan,
)

pytestmark = pytest.mark.django_db

HTMX = {"HX-Request": "true"}


def person(name: str, role: Role) -> Client:
    user = User.objects.create_user(name)
    ModelRole.objects.create(user=user, role=role)
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def operator() -> Client:
    return person("olga", Role.OPERATOR)


def follow(*steps: dict[str, Any], **plan: Any) -> Rollout:
    documents = tuple(StepDocument(**step) for step in steps)
    save_plan(
        document=PlanDocument(name="mine", steps=documents, **plan), is_default=True, actor=ANNA
    )
    return make_baking(make_model())


def gated() -> Rollout:
    return follow({"weight_bp": 500, "gate": "person", "gate_role": "admin"}, {"weight_bp": 10_000})


def address(rollout: Rollout, action: str = "") -> str:
    return f"/rollouts/{rollout.pk}/{action}"


def text_of(client: Client, rollout: Rollout) -> str:
    return rendered(client.get(address(rollout)))


def act(client: Client, rollout: Rollout, action: str, **more: Any) -> Any:
    form = {"revision": rollout.revision, **more}
    return client.post(address(rollout, action), form, headers=HTMX)


def act_asked(client: Client, rollout: Rollout, action: str, **more: Any) -> Any:
    form = {"revision": rollout.revision, **more}
    return post_yes(client, address(rollout, action), form, headers=HTMX)


def ended(rollout: Rollout) -> Rollout:
    abort_rollout(rollout=rollout, actor=ANNA, now=database_now(), reason="too many errors")
    tick_rollouts()
    rollout.refresh_from_db()
    assert rollout.phase == Phase.ROLLED_BACK
    return rollout


def test_a_step_is_skipped_but_never_the_last_one(operator: Client) -> None:
    rollout = make_baking(make_model())
    assert 'id="skip"' in text_of(operator, rollout)

    response = act_asked(operator, rollout, "skip/")
    rollout.refresh_from_db()
    assert (response.status_code, rollout.step_index) == (200, 1)

    act_asked(operator, rollout, "skip/")
    rollout.refresh_from_db()
    assert 'id="skip"' not in text_of(operator, rollout)
    refused = act_asked(operator, rollout, "skip/")
    assert refused.status_code == 409
    assert "is at its last step" in rendered(refused)


def test_a_gate_names_who_may_open_it_and_lets_nobody_else(operator: Client) -> None:
    rollout, boss = gated(), person("ada", Role.ADMIN)

    text = text_of(operator, rollout)
    assert "a person with the role admin approves it" in text
    assert re.search(r"may approve: ada", text)
    assert 'id="approve"' not in text
    assert act_asked(operator, rollout, "approve/").status_code == 403

    assert 'id="approve"' in text_of(boss, rollout)
    opened = rendered(act_asked(boss, rollout, "approve/"))
    assert "ada approved it" in opened
    assert 'id="approve"' not in opened


def test_a_paused_step_is_approved_once_it_is_resumed() -> None:
    rollout, boss = gated(), person("ada", Role.ADMIN)
    pause_rollout(rollout=rollout, actor=ANNA, now=database_now())
    rollout.refresh_from_db()

    text = text_of(boss, rollout)

    assert "Resume the rollout to approve it" in text
    assert 'id="approve"' not in text
    assert act(boss, rollout, "approve/").status_code == 409


def test_a_gate_that_nobody_has_the_role_for_says_so(client: Client) -> None:
    client.force_login(User.objects.create_user("vera"))

    assert "No person has that role on digits" in text_of(client, gated())


def test_a_viewers_gate_is_open_to_every_user(client: Client) -> None:
    rollout = follow({"weight_bp": 500, "gate": "person", "gate_role": "viewer"})
    client.force_login(User.objects.create_user("vera"))

    assert 'id="approve"' in text_of(client, rollout)
    assert act_asked(client, rollout, "approve/").status_code == 200


def test_what_ended_without_success_is_tried_again_saying_what_is_overridden(
    operator: Client,
) -> None:
    rollout = ended(make_baking(make_model()))
    text = text_of(operator, rollout)
    assert "digits:2 is in quarantine since" in text
    assert "too many errors" in text

    refused = rendered(operator.post(address(rollout, "retry/"), follow=True))
    assert "Override &#x27;quarantine&#x27;" in refused
    again = operator.post(address(rollout, "retry/"), {"override": "quarantine"})

    retried = Rollout.objects.get(retry_of=rollout)
    assert again.headers["location"] == address(retried)
    shown = text_of(operator, retried)
    assert "Overridden by olga:</b> quarantine" in shown
    assert address(rollout) in shown


def test_only_what_did_not_succeed_and_may_start_now_offers_another_try(operator: Client) -> None:
    model = make_model()
    first = ended(make_baking(model))
    Quarantine.objects.all().delete()
    assert 'id="retry"' in text_of(operator, first)

    live = make_baking(model, 3)

    assert 'id="retry"' not in text_of(operator, first)
    assert 'id="retry"' not in text_of(operator, live)


def test_viewers_neither_skip_nor_retry(client: Client) -> None:
    rollout = ended(make_baking(make_model()))
    client.force_login(User.objects.create_user("vera"))

    assert 'id="retry"' not in text_of(client, rollout)
    for action in ("retry/", "skip/", "approve/"):
        assert act(client, rollout, action).status_code == 403


def test_the_steps_tell_of_copies_gates_and_the_final_bake(operator: Client) -> None:
    rollout = follow(
        {"weight_bp": 0, "shadow_bp": 1_000, "gate": "person", "checks": ()},
        {"weight_bp": 10_000},
        holdback_bp=200,
        final_bake_s=3_600,
    )

    strip = text_of(operator, rollout).split('aria-label="Steps of the plan"')[1].split("</ol>")[0]

    assert "shadow 10 %" in strip
    assert "gate: operator" in strip
    assert "final bake" in strip
    assert "2 % of the units stay on the previous version" in text_of(operator, rollout)


def test_a_release_shows_its_other_models(operator: Client) -> None:
    make_instance()
    make_plan()
    models = [make_model("digits"), make_model("fraud")]
    targets = {model: model.versions.get(number=2) for model in models}
    start_release(name="autumn", targets=targets, actor=ANNA, now=database_now())
    mine = Rollout.objects.get(model__name="digits")

    text = text_of(operator, mine)

    assert "autumn" in text
    assert "fraud: 1 → 2" in text


def test_the_log_keeps_inputs_and_the_story_is_told_in_words(operator: Client) -> None:
    rollout = make_baking(make_model())
    row = judge(rollout, "error-rate", "pass", "as good", canary_n=7)
    row.inputs, row.rule = {"intervals": 12, "is_fresh": True}, "pass: lets the step pass"
    row.save()

    text = text_of(operator, rollout)

    assert "first 12 frozen intervals" in text
    assert "&quot;is_fresh&quot;: true" in text
    assert "pass: lets the step pass" in text
    assert "anna started it: Canary rollout of digits:2" in text


@pytest.mark.parametrize(
    ("ago_min", "wait_max_s", "message"),
    [
        (31, 0, "until its checks pass, for at most <b"),
        (31, 86_400, "or while it lacks only data for <b"),
        (200, 86_400, "until its checks pass, as it lacks only data for <b"),
    ],
)
def test_a_step_that_is_extended_says_for_how_long(
    operator: Client, ago_min: int, wait_max_s: int, message: str
) -> None:
    rollout = follow({"weight_bp": 500}, wait_max_s=wait_max_s)
    began_at = database_now() - timedelta(minutes=ago_min)
    Rollout.objects.update(
        step_started_at=began_at,
        step_due_at=began_at + timedelta(minutes=30),
        step_limit_at=began_at + timedelta(minutes=90),
    )
    text = text_of(operator, rollout)
    assert message in text
    assert "then it pauses for a person." in text
