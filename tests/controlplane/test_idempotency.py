"""Idempotency keys: stored responses, retries, and the owner of a key."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from apps.models.models import ModelRole
from apps.rollouts import plan_api
from apps.rollouts.models import Plan
from apps.rollouts.plan_store import save_plan
from controlplane.models import ApiToken, IdempotencyRecord

pytestmark = pytest.mark.django_db


def caller(name: str, role: str = "admin") -> Client:
    user = User.objects.create_user(name)
    ModelRole.objects.create(user=user, role=role)
    _, secret = ApiToken.issue(user_id=user.pk, name="ci")
    return Client(headers={"Authorization": f"Bearer {secret}"})


def post(client: Client, key: str = "k", name: str = "careful") -> Any:
    body = {"name": name, "description": "", "steps": [{"weight_bp": 500}]}
    return client.post(
        "/api/v1/plans/", body, content_type="application/json", headers={"Idempotency-Key": key}
    )


def test_a_repetition_gets_the_first_response() -> None:
    client = caller("anna")
    first, again = post(client), post(client)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert again.headers["Idempotency-Replayed"] == "true"
    assert Plan.objects.count() == 1


def test_a_key_belongs_to_its_caller() -> None:
    post(caller("anna"))
    assert post(caller("bob")).status_code == 409


def test_a_forbidden_request_can_be_retried() -> None:
    client = caller("anna", "viewer")
    assert post(client).status_code == 403
    ModelRole.objects.update(role="admin")
    assert post(client).status_code == 201


def test_a_claim_without_a_response_holds_until_it_lapses() -> None:
    client = caller("anna")
    post(client)
    IdempotencyRecord.objects.update(status=None, body=None)
    assert post(client).status_code == 409
    record = IdempotencyRecord.objects.get()
    record.at -= timedelta(minutes=2)
    record.save()
    Plan.objects.all().delete()
    assert post(client).status_code == 201


def test_a_response_is_stored_for_a_day() -> None:
    client = caller("anna")
    post(client)
    record = IdempotencyRecord.objects.get()
    record.at -= timedelta(days=2)
    record.save()
    assert post(client, name="other").status_code == 201


def test_a_key_that_is_too_long_is_refused() -> None:
    response = post(caller("anna"), key="k" * 201)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "idempotency"


def test_reads_and_pages_take_no_keys() -> None:
    client = caller("anna")
    client.get("/api/v1/plans/", headers={"Idempotency-Key": "k"})
    client.post("/login/", headers={"Idempotency-Key": "k"})
    assert not IdempotencyRecord.objects.exists()


def test_nothing_is_stored_for_unauthenticated_clients() -> None:
    assert post(Client()).status_code == 401
    assert Client().post("/api/v1/none/", headers={"Idempotency-Key": "k"}).status_code == 404
    assert not IdempotencyRecord.objects.exists()


def test_a_response_is_sent_though_its_claim_has_lapsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lapse(*args: Any, **kwargs: Any) -> Any:
        IdempotencyRecord.objects.all().delete()
        return save_plan(*args, **kwargs)

    monkeypatch.setattr(plan_api, "save_plan", lapse)
    assert post(caller("anna")).status_code == 201
