"""Releases over the API: all models start or none does, and one call takes all of them back."""

from __future__ import annotations

from typing import Any

import pytest

from apps.models.models import RegisteredModel
from apps.rollouts.models import Release, Rollout
from apps.rollouts.selectors.releases import joint_phase
from apps.rollouts.states import Phase
from tests.rollouts.callers import caller, send_json
from tests.rollouts.factories import make_model, make_plan

pytestmark = pytest.mark.django_db

RELEASES = "/api/v1/releases/"
P = Phase


@pytest.fixture(autouse=True)
def models() -> list[RegisteredModel]:
    make_plan()
    return [make_model("digits"), make_model("shapes")]


def body(**fields: Any) -> dict[str, Any]:
    return {"name": "autumn", "versions": {"digits": "2", "shapes": "3"}, **fields}


def test_a_release_starts_a_rollout_of_each_model_by_one_plan() -> None:
    bob = caller()

    created = send_json(bob, RELEASES, body(plan="canary"))

    result = created.json()
    assert (created.status_code, result["state"], result["plan"]) == (201, "pending", "canary")
    moved = {(row["model"], row["target"], row["release"]) for row in result["rollouts"]}
    assert moved == {("digits", 2, result["id"]), ("shapes", 3, result["id"])}
    assert bob.get(f"{RELEASES}{result['id']}/").json() == result
    assert bob.get(RELEASES).json()["count"] == 1


def test_an_abort_takes_all_its_models_back() -> None:
    bob = caller()
    path = f"{RELEASES}{send_json(bob, RELEASES, body()).json()['id']}/abort/"

    result = send_json(bob, path, {"reason": "wrong week"}).json()

    assert result["state"] == "rolling_back"
    assert {row["phase"] for row in result["rollouts"]} == {"rolling_back"}
    assert all("wrong week" in row["reason"] for row in result["rollouts"])


def test_what_has_ended_cannot_be_aborted() -> None:
    bob = caller()
    path = f"{RELEASES}{send_json(bob, RELEASES, body()).json()['id']}/abort/"
    Rollout.objects.update(phase=Phase.SUCCEEDED)

    answer = send_json(bob, path, {})

    assert answer.status_code == 409
    assert "succeeded" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"versions": {"digits": "2"}}, 400, "at least two models"),
        ({"versions": {}}, 400, "versions"),
        ({"versions": {"digits": "2", "a\0b": "1"}}, 400, "versions"),
        ({"versions": {"digits": "2", "nobody": "1"}}, 404, "nobody"),
        ({"versions": {"digits": "2", "shapes": "9"}}, 404, "9"),
        ({"versions": {"digits": "2", "shapes": "1"}}, 400, "already the stable version"),
        ({"plan": "none"}, 404, "none"),
        ({"name": "a/b"}, 400, "name"),
        ({"overrides": ["everything"]}, 400, "quarantine, signature, freeze"),
        ({"models": []}, 400, "models"),
    ],
)
def test_bad_input_is_named_and_starts_nothing(
    fields: dict[str, Any], status: int, message: str
) -> None:
    answer = send_json(caller(), RELEASES, body(**fields))

    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]
    assert not Rollout.objects.exists()
    assert not Release.objects.exists()


def test_it_needs_the_operator_of_each_model(models: list[RegisteredModel]) -> None:
    assert send_json(caller("operator", "bob", models[0]), RELEASES, body()).status_code == 403

    path = f"{RELEASES}{send_json(caller('admin'), RELEASES, body()).json()['id']}/abort/"

    assert send_json(caller("operator", "carl", models[1]), path, {}).status_code == 403
    assert not Rollout.objects.filter(phase=Phase.ROLLING_BACK).exists()


@pytest.mark.parametrize(
    ("phases", "joint"),
    [
        ([P.PENDING, P.BAKING], P.PENDING),
        ([P.BAKING, P.PAUSED], P.PAUSED),
        ([P.BAKING, P.BAKING], P.BAKING),
        ([P.PROMOTING, P.SUCCEEDED], P.PROMOTING),
        ([P.SUCCEEDED, P.SUCCEEDED], P.SUCCEEDED),
        ([P.ROLLING_BACK, P.ROLLED_BACK], P.ROLLING_BACK),
        ([P.FAILED, P.BAKING], P.ROLLING_BACK),
        ([P.FAILED, P.ROLLED_BACK], P.ROLLED_BACK),
        ([P.FAILED, P.FAILED], P.FAILED),
    ],
)
def test_a_release_is_as_far_as_the_last_of_its_models(phases: list[Phase], joint: Phase) -> None:
    assert joint_phase(phases) is joint
