"""Undeploy, archive, restore and delete by REST: who may, what is answered, what lists show."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from apps.models.deletion import finish_deletions
from apps.models.models import AuditEntry, Deployment, RegisteredModel
from apps.models.states import DeploymentState
from tests.rollouts.callers import caller, send_json
from tests.rollouts.factories import make_baking, make_model

pytestmark = pytest.mark.django_db

VERSION = "/api/v1/models/digits/versions/3/"
MODEL = "/api/v1/models/digits/"


def numbers(client: Client, query: str = "") -> list[int]:
    answer = client.get(f"{MODEL}versions/{query}").json()
    return [row["number"] for row in answer["results"]]


def names(client: Client, query: str = "") -> list[str]:
    return [row["name"] for row in client.get(f"/api/v1/models/{query}").json()["results"]]


@pytest.mark.parametrize(
    ("path", "method", "role"),
    [
        (f"{VERSION}undeploy/", "post", "operator"),
        (f"{VERSION}archive/", "post", "operator"),
        (f"{VERSION}restore/", "post", "operator"),
        (VERSION, "delete", "admin"),
        (f"{MODEL}undeploy/", "post", "admin"),
        (f"{MODEL}archive/", "post", "operator"),
        (f"{MODEL}restore/", "post", "operator"),
        (MODEL, "delete", "admin"),
    ],
)
def test_each_needs_its_role(path: str, method: str, role: str) -> None:
    make_model(stable=None)
    below = {"operator": None, "admin": "operator"}[role]
    refused = send_json(caller(below, "lou"), path, {}, method)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
    assert not AuditEntry.objects.exists()
    assert send_json(caller(role, "ada"), path, {}, method).status_code in {200, 202}


def test_a_version_is_undeployed_archived_shown_on_request_and_restored() -> None:
    make_model()
    operator = caller()
    answer = send_json(operator, f"{VERSION}undeploy/", {"reason": "old"})
    assert answer.json()["deployments"][0]["state"] == "draining"
    answer = send_json(operator, f"{VERSION}archive/", {"reason": "old"})
    assert (answer.json()["state"], answer.json()["state_reason"]) == ("archived", "old")
    assert numbers(operator) == [2, 1]
    assert numbers(operator, "?archived=true") == [3, 2, 1]
    assert send_json(operator, f"{VERSION}deploy/", {}).status_code == 409
    assert send_json(operator, f"{VERSION}restore/", {}).json()["state"] == "active"
    assert numbers(operator) == [3, 2, 1]


def test_what_is_needed_is_a_conflict_that_lists_what_needs_it() -> None:
    make_baking(make_model())
    answer = send_json(caller("admin"), VERSION.replace("3", "2"), {}, "delete")
    assert answer.status_code == 409
    error = answer.json()["error"]
    assert error["detail"]["needs"] == ["the rollout to version 2 is baking"]
    assert error["message"] == "digits:2 cannot be deleted: the rollout to version 2 is baking."


def test_a_deleted_version_is_readable_but_not_listed() -> None:
    make_model()
    admin = caller("admin")
    answer = send_json(admin, VERSION, {"reason": "private data"}, "delete")
    assert (answer.status_code, answer.json()["state"]) == (202, "deleting")
    Deployment.objects.filter(version__number=3).update(state=DeploymentState.ABSENT)
    finish_deletions()
    assert send_json(admin, VERSION, {}, "delete").json()["state"] == "deleted"
    row = admin.get(VERSION).json()
    assert (row["state"], row["state_by"], row["state_reason"]) == (
        "deleted", "eve", "private data",
    )  # fmt: skip
    assert numbers(admin, "?archived=true") == [2, 1]
    assert send_json(admin, f"{VERSION}restore/", {}).status_code == 409


def test_a_repeated_request_with_its_key_acts_once() -> None:
    make_model()
    operator = caller()
    headers = {"Idempotency-Key": "k"}
    sent: dict[str, Any] = {"content_type": "application/json", "headers": headers}
    first = operator.post(f"{VERSION}archive/", {}, **sent)
    again = operator.post(f"{VERSION}archive/", {}, **sent)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.json() == first.json()
    assert AuditEntry.objects.filter(action="version.archived").count() == 1


def test_a_model_goes_out_of_service_and_out_of_the_list() -> None:
    make_model()
    admin = caller("admin")
    assert send_json(admin, f"{MODEL}archive/", {}).status_code == 409
    assert send_json(admin, f"{MODEL}undeploy/", {}).json()["stable"] is None
    assert send_json(admin, f"{MODEL}archive/", {}).json()["state"] == "archived"
    assert (names(admin), names(admin, "?archived=1")) == ([], ["digits"])
    assert send_json(admin, f"{MODEL}restore/", {}).json()["state"] == "active"
    answer = send_json(admin, MODEL, {}, "delete")
    assert (answer.status_code, answer.json()["state"]) == (202, "deleting")
    assert names(admin, "?archived=1") == []
    assert RegisteredModel.objects.filter(name="digits").exists()
