"""The REST API of rollouts, with tokens, roles and idempotency; and the data plane's endpoints."""

from __future__ import annotations

from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client

from apps.lib.clock import database_now
from apps.models.models import ModelRole
from apps.rollouts.models import Instance, Rollout
from apps.rollouts.publication import publish_table
from contract.messages import InstanceReport, encode_report
from contract.routing import decode
from controlplane.models import ApiToken
from tests.rollouts.factories import ANNA, make_baking, make_model, make_plan

pytestmark = pytest.mark.django_db

PULL = "/api/dataplane/v1/routing-table"
INSTANCE = {"Authorization": f"Bearer {settings.INSTANCE_TOKEN}"}


def client(role: str | None = "operator") -> Client:
    user = User.objects.create_user("bob")
    if role:
        ModelRole.objects.create(user=user, role=role)
    _, secret = ApiToken.issue(user_id=user.pk, name="ci")
    return Client(headers={"Authorization": f"Bearer {secret}"})


def start(caller: Client, **fields: Any) -> Any:
    body = {"model": "digits", "version": "2", **fields.pop("body", {})}
    return caller.post("/api/v1/rollouts/", body, content_type="application/json", **fields)


def test_without_a_token_nothing_is_told() -> None:
    answer = Client().get("/api/v1/rollouts/")
    assert answer.status_code == 401
    assert answer.json()["error"]["code"]


def test_a_rollout_is_started_and_a_second_one_refused() -> None:
    make_model()
    make_plan()
    caller = client()
    assert start(caller).status_code == 201
    refused = start(caller, body={"version": "3"})
    assert refused.status_code == 409
    assert "live rollout" in refused.json()["error"]["message"]


def test_a_repeated_request_with_the_same_key_acts_once() -> None:
    make_model()
    make_plan()
    caller = client()
    answers = [start(caller, headers={"Idempotency-Key": "k1"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    assert Rollout.objects.count() == 1


def test_the_same_key_for_another_request_is_refused() -> None:
    make_model()
    make_plan()
    caller = client()
    start(caller, headers={"Idempotency-Key": "k1"})
    other = start(caller, headers={"Idempotency-Key": "k1"}, body={"version": "3"})
    assert other.status_code == 422


def test_a_viewer_may_look_and_not_act() -> None:
    make_model()
    make_plan()
    caller = client(role=None)
    assert caller.get("/api/v1/models/digits/").status_code == 200
    assert start(caller).status_code == 403


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "nobody"}, 404, "nobody"),
        ({"version": "99"}, 404, "99"),
        ({"version": "1"}, 400, "already the stable version"),
        ({"plan": "none"}, 404, "none"),
        ({"version": None}, 400, "version"),
    ],
)
def test_bad_input_is_named(body: dict[str, Any], status: int, message: str) -> None:
    make_model()
    make_plan()
    answer = start(client(), body=body)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("verb", "phase"), [("pause", "paused"), ("abort", "rolling_back"), ("promote", "promoting")]
)
def test_an_action_changes_the_phase_and_explains_itself(verb: str, phase: str) -> None:
    rollout = make_baking(make_model())
    caller = client()
    path = f"/api/v1/rollouts/{rollout.pk}"
    body = {"reason": "by the test", "revision": rollout.revision}
    answer = caller.post(f"{path}/{verb}/", body, content_type="application/json")
    assert answer.json()["phase"] == phase
    result = caller.get(f"{path}/explain/").json()
    assert result["events"][-1]["reason"] == "by the test"


def test_a_plan_that_falls_is_refused() -> None:
    body = {"name": "down", "steps": [{"weight_bp": 5_000}, {"weight_bp": 1_000}]}
    answer = client("admin").post("/api/v1/plans/", body, content_type="application/json")
    assert answer.status_code == 400
    assert "Step 2" in answer.json()["error"]["message"]


def test_the_table_is_pulled_with_an_etag(django_assert_num_queries: Any) -> None:
    make_model()
    publish_table(reason="t", actor=ANNA, now=database_now())
    answer = Client(headers=INSTANCE).get(PULL)
    assert decode(answer.content).models["digits"].stable == "1"
    again = Client(headers={**INSTANCE, "If-None-Match": answer["ETag"]}).get(PULL)
    assert (again.status_code, again.content) == (304, b"")


def test_the_same_state_publishes_no_new_generation() -> None:
    make_model()
    first = publish_table(reason="t", actor=ANNA, now=database_now())
    assert publish_table(reason="again", actor=ANNA, now=database_now()) == first


@pytest.mark.parametrize("token", ["", "Bearer wrong"])
def test_instances_need_their_token(token: str) -> None:
    assert Client(headers={"Authorization": token}).get(PULL).status_code == 401


def test_a_report_is_stored_and_a_bad_one_refused() -> None:
    caller = Client(headers=INSTANCE)
    report = InstanceReport(instance="i-9", boot="b", at_ms=0, applied_generation=7)
    path = "/api/dataplane/v1/report"
    good = caller.post(path, encode_report(report), content_type="application/json")
    bad = caller.post(path, b"{}", content_type="application/json")
    assert (good.status_code, bad.status_code) == (204, 400)
    assert Instance.objects.get(name="i-9").applied_generation == 7


def test_the_openapi_document_is_made() -> None:
    answer = client().get("/api/schema/", headers={"Accept": "application/vnd.oai.openapi+json"})
    assert answer.status_code == 200
    assert b"/api/v1/rollouts/" in answer.content
