"""The REST API of tenants, API keys and serving settings: roles, answers, no secret kept."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from apps.models.models import ApiKey, AuditEntry, ModelRole, RegisteredModel, Tenant
from contract.routing import Cache
from controlplane.models import ApiToken, IdempotencyRecord
from tests.models.test_warmup import fitting
from tests.rollouts.factories import latest, make_model

pytestmark = pytest.mark.django_db

API = "/api/v1"


def caller(role: str | None) -> Client:
    user = User.objects.create_user(f"user-{role}")
    if role:
        ModelRole.objects.create(user=user, role=role)
    _, secret = ApiToken.issue(user_id=user.pk, name="ci")
    return Client(headers={"Authorization": f"Bearer {secret}"})


@pytest.fixture
def admin() -> Client:
    return caller("admin")


def send(client: Client, method: str, path: str, body: Any = None, **headers: str) -> Any:
    act = getattr(client, method)
    return act(f"{API}/{path}", body or {}, content_type="application/json", headers=headers)


def make(admin: Client, **body: Any) -> Any:
    return send(admin, "post", "tenants/", {"name": "shop", **body})


def make_key(admin: Client, **headers: str) -> Any:
    return send(admin, "post", "tenants/shop/keys/", {"name": "checkout"}, **headers)


def message_of(answer: Any) -> str:
    return str(answer.json()["error"]["message"])


def test_a_tenant_is_made_read_changed_and_deleted(admin: Client) -> None:
    created = make(admin, requests_per_s=500, priority="high")
    assert (created.status_code, created.json()["active_keys"]) == (201, 0)
    make_key(admin)
    changed = send(admin, "patch", "tenants/shop/", {"burst": 900, "requests_per_s": 600})
    assert (changed.json()["burst"], changed.json()["priority"]) == (900, "high")
    assert latest().tenants["shop"].requests_per_s == 600
    listed = admin.get(f"{API}/tenants/").json()["results"]
    assert [(row["name"], row["active_keys"]) for row in listed] == [("shop", 1)]
    assert admin.get(f"{API}/tenants/shop/").json() == listed[0]
    assert send(admin, "delete", "tenants/shop/").status_code == 204
    assert not latest().tenants


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"name": "shop"}, 409, "'shop' already"),
        ({"name": "two words"}, 400, "name"),
        ({"name": "x", "burst": 5}, 400, "needs a rate, requests per second"),
        ({"name": "x", "requests_per_s": -1}, 400, "requests_per_s"),
        ({"name": "x", "concurrency_max": 0}, 400, "concurrency_max"),
        ({"name": "x", "priority": "urgent"}, 400, "priority"),
    ],
)
def test_a_tenant_that_cannot_be_is_refused(
    admin: Client, body: dict[str, Any], status: int, message: str
) -> None:
    make(admin)
    answer = make(admin, **body)
    assert (answer.status_code, Tenant.objects.count()) == (status, 1)
    assert message in message_of(answer)


def test_a_key_is_in_the_answer_that_made_it_and_in_no_other(admin: Client) -> None:
    make(admin)
    created = make_key(admin)
    secret = created.json()["key"]
    assert created["Cache-Control"] == "no-store"
    assert latest().tenants["shop"].keys == (hashlib.sha256(secret.encode()).hexdigest(),)
    (row,) = admin.get(f"{API}/tenants/shop/keys/").json()["results"]
    assert "key" not in row
    assert (row["hint"], row["created_by"]) == (secret[-4:], "user-admin")


def test_a_key_may_open_some_models_only(admin: Client) -> None:
    make(admin)
    make_model()
    body = {"name": "web", "models": ["digits"]}
    created = send(admin, "post", "tenants/shop/keys/", body)
    assert (created.status_code, created.json()["models"]) == (201, ["digits"])
    (row,) = admin.get(f"{API}/tenants/shop/keys/").json()["results"]
    assert row["models"] == ["digits"]
    assert list(latest().tenants["shop"].limited_keys.values()) == [("digits",)]
    refused = send(admin, "post", "tenants/shop/keys/", {"name": "web", "models": ["words"]})
    assert (refused.status_code, "no model 'words'" in message_of(refused)) == (400, True)


def test_a_repeated_request_makes_one_key_and_keeps_no_secret(admin: Client) -> None:
    make(admin)
    first, again = (make_key(admin, **{"Idempotency-Key": "k1"}) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 409)
    assert "shown only once" in message_of(again)
    assert ApiKey.objects.count() == 1
    kept = b"".join(bytes(record.body or b"") for record in IdempotencyRecord.objects.all())
    assert first.json()["key"].encode() not in kept


def test_a_key_is_revoked_by_its_id(admin: Client) -> None:
    make(admin)
    key = make_key(admin).json()
    answer = send(admin, "post", f"tenants/shop/keys/{key['id']}/revoke/")
    assert answer.json()["revoked_at"]
    assert latest().tenants["shop"].keys == ()
    assert send(admin, "post", "tenants/shop/keys/999/revoke/").status_code == 404
    make(admin, name="other")
    assert send(admin, "post", f"tenants/other/keys/{key['id']}/revoke/").status_code == 404


def test_a_key_is_required_by_an_admin(admin: Client) -> None:
    refused = send(admin, "put", "serving-policy/", {"key_required": True})
    assert (refused.status_code, "refuse every request" in message_of(refused)) == (409, True)
    make(admin)
    make_key(admin)
    answer = send(admin, "put", "serving-policy/", {"key_required": True})
    assert answer.json() == admin.get(f"{API}/serving-policy/").json() == {"key_required": True}
    assert latest().key_required is True


def test_others_look_and_change_nothing(admin: Client) -> None:
    make(admin)
    key = make_key(admin).json()
    make_model()
    operator = caller("operator")
    assert operator.get(f"{API}/tenants/shop/keys/").status_code == 200
    attempts = [
        ("post", "tenants/"),
        ("patch", "tenants/shop/"),
        ("delete", "tenants/shop/"),
        ("post", "tenants/shop/keys/"),
        ("post", f"tenants/shop/keys/{key['id']}/revoke/"),
        ("put", "serving-policy/"),
        ("patch", "models/digits/"),
        ("put", "models/digits/versions/1/warmup/"),
    ]
    for method, path in attempts:
        assert send(operator, method, path, {"name": "x"}).status_code == 403, path


def test_a_models_settings_are_changed_and_published_at_once(admin: Client) -> None:
    make_model()
    answer = send(admin, "patch", "models/digits/", {"cache_ttl_s": 300, "max_queue_size": 64})
    assert (answer.json()["cache_ttl_s"], answer.json()["cache_shared"]) == (300, False)
    route = latest().models["digits"]
    assert (route.cache, route.batching.max_queue_size) == (Cache(ttl_s=300), 64)
    assert AuditEntry.objects.get(action="model.changed").actor == "user-admin"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"timeout_ms": 0}, "timeout_ms: Ensure this value is greater than or equal to 1."),
        ({"max_batch_size": 5_000}, "max_batch_size: Ensure this value is less than"),
        ({"cache_shared": True}, "cache_shared needs cache_ttl_s"),
        ({"breaker_window": 5}, "breaker_failures cannot be more than breaker_window"),
        ({"unit_header": "a b"}, "unit_header: A header's name"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    admin: Client, body: dict[str, Any], message: str
) -> None:
    make_model()
    answer = send(admin, "patch", "models/digits/", body)
    assert answer.status_code == 400
    assert message in message_of(answer)
    assert RegisteredModel.objects.get().timeout_ms == 1_000


def test_warm_up_requests_are_set_and_read(admin: Client) -> None:
    make_model()
    path = "models/digits/versions/2/warmup/"
    answer = send(admin, "put", path, {"requests": [fitting()]})
    assert answer.json()["warmup"] == [fitting()]
    assert latest().models["digits"].versions["2"].warmup
    refused = send(admin, "put", path, {"requests": [fitting(rows=300)]})
    assert (refused.status_code, "65,536" in message_of(refused)) == (400, True)


def test_all_of_it_is_in_the_openapi_document(admin: Client) -> None:
    accept = {"Accept": "application/vnd.oai.openapi+json"}
    paths = admin.get("/api/schema/", headers=accept).json()["paths"]
    assert {"get", "post"} <= paths[f"{API}/tenants/"].keys()
    assert {"get", "patch", "delete"} <= paths[f"{API}/tenants/{{name}}/"].keys()
    assert {"get", "post"} <= paths[f"{API}/tenants/{{name}}/keys/"].keys()
    assert {"get", "put"} <= paths[f"{API}/serving-policy/"].keys()
    assert "patch" in paths[f"{API}/models/{{name}}/"]
