"""Tenants, their quotas and keys: each change is audited and in the table that it makes."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from apps.lib.clock import database_now
from apps.lib.errors import Conflict, Invalid
from apps.models.models import ApiKey, AuditEntry, RegisteredModel, ServingPolicy, Tenant
from apps.rollouts import tenants
from contract import routing
from tests.rollouts.factories import ANNA, latest, make_model

pytestmark = pytest.mark.django_db


def make(name: str = "shop", **quota: Any) -> Tenant:
    return tenants.create_tenant(name=name, actor=ANNA, now=database_now(), **quota)


def make_key(tenant: Tenant, name: str = "checkout") -> tuple[ApiKey, str]:
    return tenants.create_key(tenant=tenant, name=name, actor=ANNA, now=database_now())


def revoke(key: ApiKey) -> ApiKey:
    return tenants.revoke_key(key=key, actor=ANNA, now=database_now())


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def test_a_key_and_the_quota_are_in_the_table_and_the_key_itself_nowhere() -> None:
    shop = make(requests_per_s=500.0, burst=1_000, concurrency_max=64, priority="high")
    key, secret = make_key(shop)
    assert latest().tenants["shop"] == routing.Tenant(
        keys=(digest(secret),),
        requests_per_s=500.0,
        burst=1_000,
        concurrency_max=64,
        priority="high",
    )
    assert (key.hint, key.created_by) == (secret[-4:], "anna")
    stored = str(list(ApiKey.objects.values())) + str(list(AuditEntry.objects.values()))
    assert secret not in stored


def test_two_keys_of_a_tenant_share_its_quota_and_are_ordered_alike() -> None:
    shop = make()
    secrets = [make_key(shop)[1] for _ in range(3)]
    assert latest().tenants["shop"].keys == tuple(sorted(map(digest, secrets)))


def test_a_revoked_key_leaves_the_table_at_once_and_stays_in_the_list() -> None:
    shop = make()
    (lost, _), (_, kept) = make_key(shop), make_key(shop)
    generation = latest().generation
    revoke(lost)
    assert latest().generation == generation + 1
    assert latest().tenants["shop"].keys == (digest(kept),)
    assert shop.keys.count() == 2


def test_revoking_twice_keeps_the_first_instant() -> None:
    key, _ = make_key(make())
    first = revoke(key)
    assert revoke(key).revoked_at == first.revoked_at
    assert AuditEntry.objects.filter(action="api_key.revoked").count() == 1


def test_a_changed_quota_is_published_and_audited_with_what_was_before() -> None:
    shop = make(requests_per_s=5.0)
    make_key(shop)
    tenants.change_quota(tenant=shop, actor=ANNA, now=database_now(), requests_per_s=7.0)
    assert latest().tenants["shop"].requests_per_s == 7.0
    entry = AuditEntry.objects.get(action="tenant.changed")
    assert (entry.before, entry.after) == ({"requests_per_s": 5.0}, {"requests_per_s": 7.0})


@pytest.mark.parametrize(
    ("quota", "message"),
    [
        ({"requests_per_s": 0.0}, "requests_per_s"),
        ({"requests_per_s": float("nan")}, "requests_per_s"),
        ({"burst": 0, "requests_per_s": 1.0}, "burst"),
        ({"burst": 5}, "needs a rate, requests per second"),
        ({"concurrency_max": 0}, "concurrency_max"),
        ({"priority": "urgent"}, "priority"),
    ],
)
def test_a_quota_that_cannot_be_is_refused_by_name(quota: dict[str, Any], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        make(**quota)
    shop = make()
    with pytest.raises(Invalid, match=message):
        tenants.change_quota(tenant=shop, actor=ANNA, now=database_now(), **quota)


def test_a_name_is_taken_once_and_stands_in_a_url() -> None:
    make()
    with pytest.raises(Conflict, match="'shop' already"):
        make()
    with pytest.raises(Invalid, match="name"):
        make("two words")


def test_a_deleted_tenant_takes_its_keys_out_of_the_table() -> None:
    shop = make()
    make_key(shop)
    tenants.delete_tenant(tenant=shop, actor=ANNA, now=database_now())
    assert not latest().tenants
    assert not ApiKey.objects.exists()
    entry = AuditEntry.objects.get(action="tenant.deleted")
    assert "shop: checkout" in entry.before["keys"][0]


def test_active_keys_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenants, "KEYS_MAX", 1)
    shop = make()
    key, _ = make_key(shop)
    with pytest.raises(Conflict, match="revoke one first"):
        make_key(shop)
    revoke(key)
    make_key(shop)


def require(required: bool) -> None:
    tenants.require_keys(required=required, actor=ANNA, now=database_now())


def test_requiring_a_key_is_published_and_audited_and_undone() -> None:
    make_key(make())
    assert latest().key_required is False
    require(True)
    require(True)
    assert (latest().key_required, tenants.is_key_required()) == (True, True)
    require(False)
    assert latest().key_required is False
    assert AuditEntry.objects.filter(action="serving.key_required").count() == 2
    assert ServingPolicy.objects.count() == 1


def test_a_key_cannot_be_required_while_there_is_none() -> None:
    revoke(make_key(make())[0])
    with pytest.raises(Conflict, match="refuse every request"):
        require(True)
    assert not tenants.is_key_required()


def test_a_key_of_some_models_is_apart_from_those_of_all() -> None:
    shop = make()
    make_model()
    _, whole = make_key(shop)
    now = database_now()
    limited, secret = tenants.create_key(
        tenant=shop, name="web", models=["digits", "digits"], actor=ANNA, now=now
    )
    entry = latest().tenants["shop"]
    assert entry.keys == (digest(whole),)
    assert entry.limited_keys == {digest(secret): ("digits",)}
    assert AuditEntry.objects.filter(after={"models": ["digits"]}).exists()
    with pytest.raises(Invalid, match="no model 'words'"):
        tenants.create_key(tenant=shop, name="w", models=["words"], actor=ANNA, now=now)
    # Without its model it opens nothing, and not everything.
    RegisteredModel.objects.update(name="renamed")
    make_key(shop)
    assert latest().tenants["shop"].limited_keys == {digest(secret): ("digits",)}
    revoke(limited)
    assert latest().tenants["shop"].limited_keys == {}


def test_ids_are_sealed_while_there_are_tenants_and_always_alike() -> None:
    make()
    secret = latest().id_secret
    assert len(secret) == 64
    make(name="other")
    assert latest().id_secret == secret
    for each in Tenant.objects.all():
        tenants.delete_tenant(tenant=each, actor=ANNA, now=database_now())
    assert latest().id_secret == ""
