"""Writes on tenants, quotas, API keys and the policy whether a key is required.

Each change is one transaction with its audit entry and the new routing table, so that a revoked
key is refused as soon as the data planes have the table.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django.db import transaction

from apps.lib.actors import Actor
from apps.lib.errors import Conflict, Invalid
from apps.lib.validation import check_row
from apps.models.audit import record_audit
from apps.models.models import ApiKey, RegisteredModel, ServingPolicy, Tenant
from apps.rollouts.publication import publish_table

QUOTA = ("requests_per_s", "burst", "concurrency_max", "priority")
KEY_PREFIX = "ilapp_"
HINT_LENGTH = 4
KEYS_MAX = 100


def _quota_of(tenant: Tenant) -> dict[str, Any]:
    return {name: getattr(tenant, name) for name in QUOTA}


@transaction.atomic
def create_tenant(*, name: str, actor: Actor, now: datetime, **quota: Any) -> Tenant:
    """Create a tenant. `quota`: requests_per_s, burst, concurrency_max, priority; None: no limit.

    Its traffic is counted and limited once it has an API key.

    Raises:
        Invalid: a value is out of range.
        Conflict: another tenant has that name.
    """
    tenant = Tenant(name=name, **quota)
    check_row(tenant, ("name", *QUOTA))
    if Tenant.objects.filter(name=name).exists():
        raise Conflict(f"A tenant named {name!r} already exists.")
    tenant.save()
    record_audit(actor=actor, action="tenant.created", target=name, after=_quota_of(tenant))
    publish_table(reason=f"tenant {name} created", actor=actor, now=now)
    return tenant


@transaction.atomic
def change_quota(*, tenant: Tenant, actor: Actor, now: datetime, **quota: Any) -> Tenant:
    """Change the given values of the quota, from the next table on.

    Raises:
        Invalid: a value is out of range; nothing was changed.
    """
    row = Tenant.objects.select_for_update().get(pk=tenant.pk)
    before = _quota_of(row)
    for name, value in quota.items():
        setattr(row, name, value)
    check_row(row, tuple(quota))
    row.save(update_fields=list(quota))
    record_audit(
        actor=actor,
        action="tenant.changed",
        target=row.name,
        before={name: before[name] for name in quota},
        after=quota,
    )
    publish_table(reason=f"quota of tenant {row.name} changed", actor=actor, now=now)
    return row


@transaction.atomic
def delete_tenant(*, tenant: Tenant, actor: Actor, now: datetime) -> None:
    """Delete a tenant and its API keys. Requests with these keys are refused from now on."""
    before = {**_quota_of(tenant), "keys": [str(key) for key in active_keys(tenant)]}
    tenant.delete()
    record_audit(actor=actor, action="tenant.deleted", target=tenant.name, before=before)
    publish_table(reason=f"tenant {tenant.name} deleted", actor=actor, now=now)


def active_keys(tenant: Tenant) -> list[ApiKey]:
    """Return the keys of the tenant that are not revoked, newest first."""
    return list(tenant.keys.filter(revoked_at=None).select_related("tenant"))


@transaction.atomic
def create_key(
    *, tenant: Tenant, name: str, actor: Actor, now: datetime, models: Sequence[str] = ()
) -> tuple[ApiKey, str]:
    """Create an API key; return its row and the secret, which cannot be read again.

    The key is valid for `models`; without any, for all models. This never changes.

    Raises:
        Invalid: the name is empty or too long, or a model does not exist.
        Conflict: the tenant already has KEYS_MAX active keys.
    """
    # The lock keeps the count valid.
    tenant = Tenant.objects.select_for_update().get(pk=tenant.pk)
    if tenant.keys.filter(revoked_at=None).count() >= KEYS_MAX:
        raise Conflict(
            f"{tenant.name} already has {KEYS_MAX} active API keys, the maximum; revoke one first."
        )
    secret = KEY_PREFIX + secrets.token_urlsafe(32)
    key = ApiKey(
        tenant=tenant,
        name=name,
        opens=_existing(models),
        digest=hashlib.sha256(secret.encode()).hexdigest(),
        hint=secret[-HINT_LENGTH:],
        created_at=now,
        created_by=actor.name,
    )
    check_row(key, ("name",))
    key.save()
    after = {"models": key.opens or "all"}
    record_audit(actor=actor, action="api_key.created", target=str(key), after=after)
    publish_table(reason=f"API key for tenant {tenant.name}", actor=actor, now=now)
    return key, secret


def _existing(names: Sequence[str]) -> list[str]:
    """Return the sorted distinct names. Raises Invalid for an unknown model."""
    distinct = set(names)
    known = set(RegisteredModel.objects.filter(name__in=distinct).values_list("name", flat=True))
    if unknown := sorted(distinct - known):
        raise Invalid(f"there is no model {unknown[0][:100]!r}.", field="models")
    return sorted(distinct)


@transaction.atomic
def revoke_key(*, key: ApiKey, actor: Actor, now: datetime) -> ApiKey:
    """Revoke an API key. Revoking it again changes nothing."""
    row = ApiKey.objects.select_for_update(of=("self",)).select_related("tenant").get(pk=key.pk)
    if row.revoked_at is None:
        row.revoked_at = now
        row.save(update_fields=["revoked_at"])
        record_audit(actor=actor, action="api_key.revoked", target=str(row))
        publish_table(reason=f"API key of tenant {row.tenant} revoked", actor=actor, now=now)
    return row


def is_key_required() -> bool:
    """Return whether requests without an API key are refused."""
    return ServingPolicy.objects.filter(key_required=True).exists()


@transaction.atomic
def require_keys(*, required: bool, actor: Actor, now: datetime) -> None:
    """Require an API key of all requests, or answer requests without one anonymously.

    Raises:
        Conflict: there is no active API key, so that every request would be refused.
    """
    policy, _ = ServingPolicy.objects.select_for_update().get_or_create(pk=1)
    if required and not ApiKey.objects.filter(revoked_at=None).exists():
        raise Conflict("There is no active API key; requiring one would refuse every request.")
    if policy.key_required == required:
        return
    policy.key_required = required
    policy.save(update_fields=["key_required"])
    record_audit(
        actor=actor,
        action="serving.key_required",
        target="all models",
        before={"key_required": not required},
        after={"key_required": required},
    )
    reason = "an API key is required" if required else "no API key is required"
    publish_table(reason=reason, actor=actor, now=now)
