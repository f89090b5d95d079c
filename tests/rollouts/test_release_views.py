"""The pages of releases: chosen row by row, started all or none, watched and aborted together."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from apps.lib.clock import database_now
from apps.models.models import ModelRole, RegisteredModel, Role
from apps.rollouts.freeze_store import create_freeze
from apps.rollouts.models import Quarantine, Release, Rollout
from apps.rollouts.releases import start_release
from apps.rollouts.states import Phase
from tests.confirming import post_yes, question_of
from tests.rollouts.browser import form_in
from tests.rollouts.callers import rendered
from tests.rollouts.factories import (
    ANNA,
    make_baking,
    make_model,
    make_plan,
    make_signature,
    make_version,
    place,
)

pytestmark = pytest.mark.django_db

RELEASES = "/rollouts/releases/"
NEW = f"{RELEASES}new/"
CHOSEN = {"model": ["digits", "shapes"], "version": ["2", "3"], "plan": "canary"}


@pytest.fixture(autouse=True)
def models() -> list[RegisteredModel]:
    make_plan()
    return [make_model("digits"), make_model("shapes")]


@pytest.fixture
def operator(client: Client) -> Client:
    user = User.objects.create_user("olga")
    ModelRole.objects.create(user=user, role=Role.OPERATOR)
    client.force_login(user)
    return client


def start(name: str = "autumn") -> Release:
    targets = {each: each.versions.get(number=2) for each in RegisteredModel.objects.all()}
    return start_release(name=name, targets=targets, actor=ANNA, now=database_now())


def text_of(client: Client, path: str, **sent: Any) -> str:
    response = client.get(path, sent)
    assert response.status_code == 200
    return rendered(response)


# --- The list and one release -------------------------------------------------------------------


def test_without_releases_the_list_says_what_one_is(operator: Client) -> None:
    text = text_of(operator, RELEASES)

    assert "No release yet" in text
    assert NEW in text
    assert RELEASES in text_of(operator, "/rollouts/")


def test_the_list_tells_state_models_and_plan(operator: Client) -> None:
    release = start()

    table = text_of(operator, RELEASES).split('id="releases"')[1]

    assert f"{RELEASES}{release.pk}/" in table
    assert 'digits 1 → <span class="version">2</span>' in table
    assert 'shapes 1 → <span class="version">2</span>' in table
    assert ">pending<" in table


def test_a_release_shows_its_rollouts_and_who_waits_for_whom(operator: Client) -> None:
    release = start()
    Rollout.objects.update(phase=Phase.BAKING, step_index=0)
    Rollout.objects.filter(model__name="digits").update(step_passed_at=database_now())

    text = text_of(operator, f"{RELEASES}{release.pk}/")

    for rollout in Rollout.objects.all():
        assert f"/rollouts/{rollout.pk}/" in text
        assert f"{RELEASES}{release.pk}/" in text_of(operator, f"/rollouts/{rollout.pk}/")
    assert "digits passed this step and waits for shapes." in text


def test_a_release_that_has_not_changed_answers_nothing(operator: Client) -> None:
    release = start()
    path, headers = f"{RELEASES}{release.pk}/", {"hx-request": "true"}
    stamp = text_of(operator, path).split("?stamp=")[1].split('"')[0]

    assert operator.get(path, {"stamp": stamp}, headers=headers).status_code == 204
    Rollout.objects.filter(model__name="shapes").update(revision=9)

    fresh = operator.get(path, {"stamp": stamp}, headers=headers)
    assert fresh.status_code == 200
    assert "<html" not in rendered(fresh)


def test_an_abort_names_all_models_and_takes_them_back(operator: Client) -> None:
    release = start()
    path = f"{RELEASES}{release.pk}/"

    data = question_of(operator, f"{path}abort/")
    post_yes(operator, f"{path}abort/")

    assert "digits to version 1, shapes to version 1" in data
    assert {each.phase for each in Rollout.objects.all()} == {Phase.ROLLING_BACK}
    assert "manually" in Rollout.objects.get(model__name="digits").reason


def test_what_has_ended_is_not_aborted_nor_polled(operator: Client) -> None:
    release = start()
    Rollout.objects.update(phase=Phase.SUCCEEDED)
    path = f"{RELEASES}{release.pk}/"

    text = text_of(operator, path)
    refused = post_yes(operator, f"{path}abort/", follow=True)

    assert 'id="abort"' not in text
    assert f'hx-get="{path}' not in text
    assert "has already ended: succeeded" in rendered(refused)


def test_an_abort_needs_the_role_on_every_model(client: Client) -> None:
    release = start()
    user = User.objects.create_user("vera")
    digits = RegisteredModel.objects.get(name="digits")
    ModelRole.objects.create(user=user, model=digits, role=Role.OPERATOR)
    client.force_login(user)
    path = f"{RELEASES}{release.pk}/"

    assert 'id="abort"' not in text_of(client, path)
    assert client.post(f"{path}abort/").status_code == 403
    assert all(each.is_live for each in Rollout.objects.all())


# --- Starting one -------------------------------------------------------------------------------


def test_nothing_chosen_asks_for_two_models(operator: Client) -> None:
    text = text_of(operator, NEW)

    assert text.count('name="model"') == 2
    assert "Choose at least two models" in text


def test_a_choice_shows_versions_steps_and_one_more_row(operator: Client) -> None:
    text = text_of(operator, NEW, **CHOSEN | {"version": ["99", "2"], "name": "autumn"})

    # A version that the model has not becomes its newest; the spare row and the form come after.
    assert form_in(text, "csrfmiddlewaretoken")
    assert "digits 1 → <b>3</b>, shapes 1 → <b>2</b>" in text
    assert 'value="autumn"' in text
    assert 'id="model-3"' in text
    assert 'aria-label="Steps of the plan"' in text


def test_what_is_shown_is_started_as_it_is_sent(operator: Client) -> None:
    shown = form_in(text_of(operator, NEW, **CHOSEN), "name")

    response = operator.post(NEW, shown | {"name": "autumn"})

    release = Release.objects.get()
    assert response["location"] == f"{RELEASES}{release.pk}/"
    assert (release.plan_name, release.started_by) == ("canary", "olga")
    moved = {(each.model.name, each.target.number) for each in release.rollouts.all()}
    assert moved == {("digits", 2), ("shapes", 3)}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": ""}, "This field is required."),
        ({"name": "a b"}, "A name has at most 100 letters"),
        ({"plan": "nothing"}, "Select a valid choice."),
        ({"model": ["digits", "digits"]}, "digits is chosen twice."),
        ({"model": ["digits", "nothing"]}, "There is no model named &#x27;nothing&#x27;."),
        ({"version": ["2", "1"]}, "shapes has no version &#x27;1&#x27; to roll out."),
        ({"version": ["2"]}, "Choose a version."),
        ({"model": ["digits"], "version": ["2"]}, "A release needs at least two models"),
        ({"model": []}, "A release needs at least two models"),
    ],
)
def test_what_cannot_be_started_is_refused_with_the_place(
    operator: Client, data: dict[str, Any], message: str
) -> None:
    response = operator.post(NEW, CHOSEN | {"name": "autumn"} | data)

    assert response.status_code == 400
    assert message in rendered(response)
    assert not Release.objects.exists()


def test_models_that_cannot_move_in_steps_say_why_at_once(operator: Client) -> None:
    digits = RegisteredModel.objects.get(name="digits")
    place(make_version(digits, 9, signature=make_signature(32)))
    make_model("fresh", stable=None)
    make_model("lonely", versions=1)
    make_baking(make_model("busy"))
    names = ["digits", "fresh", "lonely", "busy"]

    text = text_of(operator, NEW, model=names, version=["9", "1", "", "2"])

    for message in ("their signatures differ", "no stable version yet"):
        assert message in text
    assert "lonely has no version besides the stable one." in text
    assert "busy already has a live rollout or experiment" in text
    assert 'id="start" disabled' in text


def test_overrides_are_asked_for_once_and_then_hold_for_all(operator: Client) -> None:
    now, hour = database_now(), timedelta(hours=1)
    times = {"starts_at": now - hour, "ends_at": now + hour}
    create_freeze(model=None, reason="the fair", **times, actor=ANNA, now=now)
    held = RegisteredModel.objects.get(name="digits").versions.get(number=2)
    Quarantine.objects.create(version=held, reason="slow", at=now)
    data = CHOSEN | {"name": "autumn"}

    refused = operator.post(NEW, data)
    forbidden = operator.post(NEW, data | {"override": ["quarantine", "freeze"]})
    assert forbidden.status_code == 403
    ModelRole.objects.update(role=Role.ADMIN)
    operator.post(NEW, data | {"override": ["quarantine", "freeze"]})

    assert refused.status_code == 409
    text = rendered(refused)
    assert text.count('name="override" value="freeze"') == 1
    assert "digits:2 is in quarantine" in text
    overridden = {each.model.name: each.overrides for each in Rollout.objects.all()}
    assert overridden == {"digits": ["quarantine", "freeze"], "shapes": ["freeze"]}


def test_a_name_that_is_live_is_a_conflict(operator: Client) -> None:
    start()
    make_model("faces")
    make_model("hands")

    data = {"model": ["faces", "hands"], "version": ["2", "2"], "plan": "canary"}
    response = operator.post(NEW, data | {"name": "autumn"})

    assert response.status_code == 409
    assert "A release named autumn is already live" in rendered(response)


def test_starting_needs_the_role_on_every_model(client: Client) -> None:
    user = User.objects.create_user("vera")
    digits = RegisteredModel.objects.get(name="digits")
    ModelRole.objects.create(user=user, model=digits, role=Role.OPERATOR)
    client.force_login(user)

    assert "on which you are an operator" in text_of(client, NEW)
    assert client.post(NEW, CHOSEN | {"name": "autumn"}).status_code == 403
    assert not Release.objects.exists()
