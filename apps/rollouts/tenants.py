"""Who may ask for predictions: tenants, their quotas and API keys, and whether a key is required.

Each change is one transaction with its audit entry and the routing table that it makes, so that a
revoked key is refused as soon as the data planes have the table.
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
    """Make a tenant. `quota`: requests_per_s, burst, concurrency_max, priority; None is no limit.

    It gets its traffic counted and limited once it has an API key.

    Raises:
        Invalid: a value is out of its range.
        Conflict: another tenant has that name.
    """
    tenant = Tenant(name=name, **quota)
    check_row(tenant, ("name", *QUOTA))
    if Tenant.objects.filter(name=name).exists():
        raise Conflict(f"There is a tenant {name!r} already.")
    tenant.save()
    record_audit(actor=actor, action="tenant.created", target=name, after=_quota_of(tenant))
    publish_table(reason=f"tenant {name} created", actor=actor, now=now)
    return tenant


@transaction.atomic
def change_quota(*, tenant: Tenant, actor: Actor, now: datetime, **quota: Any) -> Tenant:
    """Change what of the quota is named; it holds from the next table on.

    Raises:
        Invalid: a value is out of its range; nothing was changed.
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
    """Delete a tenant and its API keys: whoever shows one of them is refused from now on."""
    before = {**_quota_of(tenant), "keys": [str(key) for key in active_keys(tenant)]}
    tenant.delete()
    record_audit(actor=actor, action="tenant.deleted", target=tenant.name, before=before)
    publish_table(reason=f"tenant {tenant.name} deleted", actor=actor, now=now)


def active_keys(tenant: Tenant) -> list[ApiKey]:
    """Return the tenant's keys that are not revoked, the newest first."""
    return list(tenant.keys.filter(revoked_at=None).select_related("tenant"))


@transaction.atomic
def create_key(
    *, tenant: Tenant, name: str, actor: Actor, now: datetime, models: Sequence[str] = ()
) -> tuple[ApiKey, str]:
    """Make an API key; return it and the key itself, which nobody can read again.

    It opens `models` alone, and all of them where none is named. What a key opens never changes.

    Raises:
        Invalid: the name is empty or too long, or there is no such model.
        Conflict: the tenant has as many active keys as it may have.
    """
    # The lock makes the count hold.
    tenant = Tenant.objects.select_for_update().get(pk=tenant.pk)
    if tenant.keys.filter(revoked_at=None).count() >= KEYS_MAX:
        raise Conflict(f"{tenant.name} has {KEYS_MAX} active API keys: revoke one first.")
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
    """Return the names in order, each once. Raises Invalid for one of no model."""
    asked = set(names)
    known = set(RegisteredModel.objects.filter(name__in=asked).values_list("name", flat=True))
    if unknown := sorted(asked - known):
        raise Invalid(f"models: there is no model {unknown[0][:100]!r}.")
    return sorted(asked)


@transaction.atomic
def revoke_key(*, key: ApiKey, actor: Actor, now: datetime) -> ApiKey:
    """Make an API key open nothing any more. Revoking it again changes nothing."""
    row = ApiKey.objects.select_for_update(of=("self",)).select_related("tenant").get(pk=key.pk)
    if row.revoked_at is None:
        row.revoked_at = now
        row.save(update_fields=["revoked_at"])
        record_audit(actor=actor, action="api_key.revoked", target=str(row))
        publish_table(reason=f"API key of tenant {row.tenant} revoked", actor=actor, now=now)
    return row


def is_key_required() -> bool:
    """Say whether requests without an API key are refused."""
    return ServingPolicy.objects.filter(key_required=True).exists()


@transaction.atomic
def require_keys(*, required: bool, actor: Actor, now: datetime) -> None:
    """Refuse requests that bring no API key, or answer them as nobody's.

    Raises:
        Conflict: it would refuse every request, as there is no active API key.
    """
    policy, _ = ServingPolicy.objects.select_for_update().get_or_create(pk=1)
    if required and not ApiKey.objects.filter(revoked_at=None).exists():
        raise Conflict("There is no active API key: requiring one would refuse every request.")
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
    told = "an API key is required" if required else "no API key is required"
    publish_table(reason=told, actor=actor, now=now)
