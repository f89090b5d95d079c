"""What served a model before: the history, an instant of it, and the ways back."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.test import Client

from apps.lib.clock import database_now
from apps.models.models import ModelRole, RegisteredModel, Role
from apps.models.states import DeploymentState
from apps.rollouts.models import Quarantine, Rollout, ServingChange
from tests.confirming import post_yes
from tests.rollouts.callers import rendered
from tests.rollouts.factories import make_baking, make_model, make_version, place

pytestmark = pytest.mark.django_db

HISTORY = "/models/digits/history/"


@pytest.fixture
def operator(client: Client) -> Client:
    user = User.objects.create_user("olga")
    ModelRole.objects.create(user=user, role=Role.OPERATOR)
    client.force_login(user)
    return client


def text_of(client: Client, path: str) -> str:
    return rendered(client.get(path))


# --- What served --------------------------------------------------------------------------------


def test_a_model_that_nothing_served_says_so(operator: Client) -> None:
    make_model()

    assert "No entries yet" in text_of(operator, HISTORY)
    assert "no routing table with this model" in text_of(
        operator, f"{HISTORY}?at=2026-01-01T10:00:00"
    )
    assert HISTORY in text_of(operator, "/models/digits/")


def test_changes_are_listed_with_shares_reason_and_rollout(operator: Client) -> None:
    rollout = make_baking(make_model())

    text = text_of(operator, HISTORY)

    assert "stable 1" in text
    assert "canary 2 at 5 %" in text
    assert f"/rollouts/{rollout.pk}/" in text


def test_an_instant_tells_what_served_then_and_who_decided_it(operator: Client) -> None:
    rollout = make_baking(make_model())
    change = ServingChange.objects.get()
    at = change.at + timedelta(seconds=1)

    text = text_of(operator, f"{HISTORY}?at={at:%Y-%m-%dT%H:%M:%S}")
    before = text_of(operator, f"{HISTORY}?at={change.at - timedelta(minutes=1):%Y-%m-%dT%H:%M}")

    notice = text.split('id="served"')[1].split("</div>")[0]
    assert "stable 1, canary 2 at 5 %" in notice
    assert "decided by anna" in notice
    assert f"/rollouts/{rollout.pk}/" in notice
    assert "the history begins later" in before


def test_the_second_at_which_a_change_is_listed_is_one_that_it_served(operator: Client) -> None:
    make_baking(make_model())
    change = ServingChange.objects.get()

    text = text_of(operator, f"{HISTORY}?at={change.at:%Y-%m-%dT%H:%M:%S}")

    assert "canary 2 at 5 %" in text.split('id="served"')[1].split("</div>")[0]
    assert "history begins later" in text_of(
        operator, f"{HISTORY}?at={change.at - timedelta(seconds=1):%Y-%m-%dT%H:%M:%S}"
    )


@pytest.mark.parametrize(
    ("split", "shadow", "message"),
    [
        (
            {
                "kind": "experiment",
                "id": "x",
                "coverage_bp": 5_000,
                "variants": [{"name": "weak", "version": "1", "weight_bp": 5_000}],
            },
            None,
            "weak 1 at 25 %",
        ),
        (None, {"version": "2", "share_bp": 1_000}, "shadow of 10 % to version 2"),
    ],
)
def test_experiments_and_shadows_are_told(
    operator: Client, split: object, shadow: object, message: str
) -> None:
    make_model()
    values = {"split": split, "shadow": shadow, "reason": "x", "actor": "anna"}
    ServingChange.objects.create(
        model_name="digits", at=database_now(), generation=1, stable="1", **values
    )

    assert message in text_of(operator, HISTORY)


@pytest.mark.parametrize("at", ["", "yesterday", "2026-13-01T00:00"])
def test_an_instant_that_is_none_is_refused_beside_the_field(operator: Client, at: str) -> None:
    make_model()

    response = operator.get(f"{HISTORY}?at={at}")

    assert response.status_code == 400
    assert "errorlist" in rendered(response)


def test_the_history_of_no_model_is_a_404(operator: Client) -> None:
    assert operator.get("/models/nothing/history/").status_code == 404


# --- The ways back ------------------------------------------------------------------------------


def make_third_stable() -> RegisteredModel:
    """Return a model at version 3, which had 1, 2 and 4 before; 1 is not loaded any more."""
    model = make_model(stable=3)
    place(make_version(model, 4))
    for number in (1, 2, 4):
        Rollout.objects.create(
            model=model,
            target=model.versions.get(number=number),
            phase="succeeded",
            salt="s",
            started_by="anna",
            started_at=database_now(),
        )
    model.versions.get(number=1).deployments.update(state=DeploymentState.ABSENT)
    return model


def test_every_earlier_version_is_a_way_back_with_what_it_takes(operator: Client) -> None:
    model = make_third_stable()
    four = model.versions.get(number=4)
    Quarantine.objects.create(version=four, reason="slow", at=database_now())

    card = text_of(operator, "/models/digits/").split('id="rollback-title"')[1]

    assert "4: loaded, instant, in quarantine" in card
    assert "2: loaded, instant<" in card
    assert "1: loads first" in card
    assert "Override the quarantine" in card


def test_the_chosen_version_is_gone_back_to_with_the_reason(operator: Client) -> None:
    model = make_third_stable()

    post_yes(operator, "/models/digits/rollback/", {"version": "2", "reason": "calmer"})

    rollout = Rollout.objects.get(kind=Rollout.Kind.ROLLBACK)
    model.refresh_from_db()
    assert (rollout.target.number, rollout.started_by) == (2, "olga")
    assert model.stable_id == rollout.target_id
    assert "calmer" in rollout.events.earliest("id").reason


def test_a_version_in_quarantine_is_gone_back_to_only_on_purpose(operator: Client) -> None:
    model = make_third_stable()
    two = model.versions.get(number=2)
    Quarantine.objects.create(version=two, reason="slow", at=database_now())
    address, data = "/models/digits/rollback/", {"version": "2"}

    refused = rendered(post_yes(operator, address, data, follow=True))
    assert "is in quarantine" in refused
    post_yes(operator, address, data | {"override": "quarantine"})

    assert Rollout.objects.get(kind=Rollout.Kind.ROLLBACK).overrides == ["quarantine"]


@pytest.mark.parametrize("version", ["99", "zwei", "-1", "9" * 30])
def test_a_version_that_does_not_exist_changes_nothing(operator: Client, version: str) -> None:
    make_third_stable()

    response = operator.post("/models/digits/rollback/", {"version": version}, follow=True)

    assert "has no version" in rendered(response)
    assert not Rollout.objects.filter(kind=Rollout.Kind.ROLLBACK).exists()


def test_only_an_operator_without_a_live_split_is_offered_a_way_back(client: Client) -> None:
    model = make_third_stable()
    client.force_login(User.objects.create_user("vera"))
    assert "rollback-title" not in text_of(client, "/models/digits/")
    assert client.post("/models/digits/rollback/", {"version": "2"}).status_code == 403

    make_baking(model, 4)
    client.force_login(User.objects.create_superuser("root"))

    assert "rollback-title" not in text_of(client, "/models/digits/")
