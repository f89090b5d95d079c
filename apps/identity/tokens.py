"""Tokens of data-plane instances: issued, rotated with an overlap, revoked.

The secret is shown once, to the user who issued it. Each change is one transaction with its audit
entry, and takes effect in all processes within seconds.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime, timedelta

from django.db import transaction

from apps.identity import callers
from apps.identity.models import InstanceToken
from apps.lib.actors import Actor
from apps.lib.errors import Conflict, Invalid
from apps.models.audit import record_audit
from contract.message_signatures import seal_root
from contract.names import NAME_RULE, is_name

PREFIX = "ilinst_"
HINT_LENGTH = 4
OVERLAP = timedelta(hours=24)
OVERLAP_MAX = timedelta(days=90)


@transaction.atomic
def issue_token(*, instance: str, actor: Actor, now: datetime) -> tuple[InstanceToken, str]:
    """Issue the first token of an instance; return it and its secret.

    Raises:
        Invalid: the name is not valid.
        Conflict: the instance has a valid token.
    """
    _check_name(instance)
    if valid := valid_tokens(instance, now):
        raise Conflict(f"{instance} has a token (…{valid[0].hint}): rotate it, or revoke it first.")
    return _create(instance, PREFIX + secrets.token_urlsafe(32), actor, now)


@transaction.atomic
def rotate_token(
    *, instance: str, overlap: timedelta = OVERLAP, actor: Actor, now: datetime
) -> tuple[InstanceToken, str]:
    """Issue a new token for an instance; its other tokens expire after `overlap`.

    Raises:
        Invalid: the overlap is out of range.
        Conflict: the instance has no valid token.
    """
    if not timedelta() <= overlap <= OVERLAP_MAX:
        raise Invalid(
            f"must be from 0 to {OVERLAP_MAX.total_seconds():.0f} seconds.", field="overlap_s"
        )
    valid = valid_tokens(instance, now)
    if not valid:
        raise Conflict(f"{instance} has no valid token: issue one.")
    for token in valid:
        if token.expires_at is None or token.expires_at > now + overlap:
            token.expires_at = now + overlap
            token.save(update_fields=["expires_at"])
    new, secret = _create(instance, PREFIX + secrets.token_urlsafe(32), actor, now)
    expires_at = (now + overlap).isoformat()
    after = {"made": str(new), "expiring": [str(token) for token in valid], "at": expires_at}
    record_audit(actor=actor, action="instance_token.rotated", target=instance, after=after)
    callers.forget()
    return new, secret


@transaction.atomic
def revoke_token(*, token: InstanceToken, actor: Actor, now: datetime) -> InstanceToken:
    """Revoke a token. Revoking it again changes nothing."""
    row = InstanceToken.objects.select_for_update().get(pk=token.pk)
    if row.revoked_at is None:
        row.revoked_at = now
        row.save(update_fields=["revoked_at"])
        record_audit(actor=actor, action="instance_token.revoked", target=str(row))
        callers.forget()
    return row


@transaction.atomic
def adopt_token(*, instance: str, secret: str, actor: Actor, now: datetime) -> bool:
    """Issue a token for an existing secret, from the environment of the installation.

    Returns False and changes nothing if the secret was ever issued: a revoked one stays revoked.
    """
    _check_name(instance)
    if InstanceToken.objects.filter(digest=digest_of(secret)).exists():
        return False
    _create(instance, secret, actor, now)
    return True


def valid_tokens(instance: str, now: datetime) -> list[InstanceToken]:
    """Lock and return the valid tokens of an instance, newest first."""
    rows = InstanceToken.objects.select_for_update().filter(instance=instance, revoked_at=None)
    return [row for row in rows.order_by("-id") if row.is_valid(now)]


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _check_name(instance: str) -> None:
    if not is_name(instance):
        raise Invalid(f"a name has {NAME_RULE}.", field="instance")


def _create(instance: str, secret: str, actor: Actor, now: datetime) -> tuple[InstanceToken, str]:
    token = InstanceToken.objects.create(
        instance=instance,
        digest=digest_of(secret),
        seal_root=seal_root(secret).hex(),
        hint=secret[-HINT_LENGTH:],
        created_at=now,
        created_by=actor.name,
    )
    record_audit(actor=actor, action="instance_token.issued", target=str(token))
    return token, secret
