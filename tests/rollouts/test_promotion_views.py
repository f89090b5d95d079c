"""The promote page: what must be overridden, with what that means, and what it warns of."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.test import Client

from apps.lib.clock import database_now
from apps.models.models import ModelRole, RegisteredModel, Role
from apps.rollouts.models import FreezeWindow, Quarantine, Rollout
from apps.rollouts.plan_store import save_plan
from apps.rollouts.plans import PlanDocument, StepDocument
from tests.experiments.factories import make_running
from tests.rollouts.callers import rendered
from tests.rollouts.factories import (
    ANNA,
    make_instance,
    make_model,
    make_plan,
    make_signature,
    make_version,
    place,
    send,
)

pytestmark = pytest.mark.django_db

PROMOTE = "/models/digits/promote/"
CHOICE = {"version": 2, "plan": "canary"}


@pytest.fixture
def operator(client: Client) -> Client:
    user = User.objects.create_user("olga")
    ModelRole.objects.create(user=user, role=Role.OPERATOR)
    client.force_login(user)
    return client


@pytest.fixture
def model() -> RegisteredModel:
    make_plan()
    return make_model()


def freeze(model: RegisteredModel | None) -> FreezeWindow:
    now = database_now()
    return FreezeWindow.objects.create(
        model=model,
        reason="end of year",
        starts_at=now - timedelta(hours=1),
        ends_at=now + timedelta(hours=1),
        created_by="anna",
        created_at=now,
    )


def text_of(client: Client, query: str = "") -> str:
    return rendered(client.get(PROMOTE + query))


def test_a_version_in_quarantine_says_since_when_and_why_and_is_tried_again_only_on_purpose(
    operator: Client, model: RegisteredModel
) -> None:
    version, at = model.versions.get(number=2), database_now()
    Quarantine.objects.create(version=version, reason="error rate 3.1%", at=at)
    text = text_of(operator, "?version=2")
    assert f"in quarantine since {at:%-d %b %Y %H:%M} UTC" in text
    assert "error rate 3.1%" in text
    assert 'id="obstacle-quarantine"' in text

    refused = operator.post(PROMOTE, CHOICE)
    assert refused.status_code == 409
    assert not Rollout.objects.exists()
    started = operator.post(PROMOTE, CHOICE | {"override": "quarantine"})

    assert started.status_code == 302
    assert Rollout.objects.get().overrides == ["quarantine"]


def test_a_freeze_says_its_end_and_may_be_overridden(
    operator: Client, model: RegisteredModel
) -> None:
    window = freeze(model)

    text = text_of(operator)
    operator.post(PROMOTE, CHOICE | {"override": "freeze"})

    assert f"frozen until {window.ends_at:%-d %b %Y %H:%M} UTC: end of year" in text
    assert Rollout.objects.get().overrides == ["freeze"]


def test_another_signature_is_shown_as_both_sides_and_switched_to_on_purpose(
    operator: Client, model: RegisteredModel
) -> None:
    place(make_version(model, 4, signature=make_signature(32)))
    text = text_of(operator, "?version=4")
    table = text.split('id="signature-difference"')[1].split("</table>")[0]
    assert "FP32 [∗, 64]" in table
    assert "FP32 [∗, 32]" in table
    assert "output" not in table
    assert "without the steps of a plan" in text

    operator.post(PROMOTE, {"version": 4, "plan": "canary", "override": "signature"})

    assert Rollout.objects.get().kind == Rollout.Kind.SWITCH


def test_what_is_overridden_stays_ticked_when_something_else_refuses(
    operator: Client, model: RegisteredModel
) -> None:
    freeze(model)
    version = model.versions.get(number=2)
    Quarantine.objects.create(version=version, reason="slow", at=database_now())

    text = rendered(operator.post(PROMOTE, CHOICE | {"override": "freeze"}))

    assert 'value="freeze" checked' in text
    assert 'value="quarantine" required' in text


def test_an_override_that_does_not_exist_is_refused(
    operator: Client, model: RegisteredModel
) -> None:
    response = operator.post(PROMOTE, CHOICE | {"override": "gravity"})

    assert response.status_code == 400
    assert "unknown override" in rendered(response)


def test_it_warns_of_pins_and_of_instances_that_went_silent(
    operator: Client, model: RegisteredModel
) -> None:
    make_instance("held", pinned=["digits"])
    make_instance("gone", reported_at=database_now() - timedelta(minutes=2))

    text = text_of(operator)

    assert "Instance held has digits pinned to stable" in text
    assert "Instance gone has been silent" in text


def test_a_plan_that_starts_at_0_says_so(operator: Client, model: RegisteredModel) -> None:
    for name, first in (
        ("blue-green", StepDocument(weight_bp=0, checks=())),
        ("shadow", StepDocument(weight_bp=0, shadow_bp=1_000, checks=())),
    ):
        steps = (first, StepDocument(weight_bp=10_000))
        save_plan(document=PlanDocument(name=name, steps=steps), actor=ANNA)

    assert "except requests with its version number" in text_of(
        operator, "?version=2&plan=blue-green"
    )
    assert "except copies of 10 % of the requests" in text_of(operator, "?version=2&plan=shadow")


def test_a_live_experiment_is_named_and_blocks_the_start(
    operator: Client,
) -> None:
    experiment = make_running()
    make_plan()

    text = rendered(operator.get(f"/models/{experiment.model.name}/promote/"))

    assert f"/experiments/{experiment.name}/" in text
    assert re.search(r'id="start" disabled', text)


def test_it_tells_how_long_the_plan_takes_at_the_models_traffic(
    operator: Client, model: RegisteredModel
) -> None:
    assert "no traffic in the last week" in text_of(operator)
    for hours in (1, 20, 160):
        send("digits", 1, at=database_now() - timedelta(hours=hours), requests=4, units=4)
    text = text_of(operator)
    assert "requests per hour with " in text
    assert "too long: it would pause for a person in step" in text
    assert "cannot decide, so that it pauses for a person after its bake time" in text
