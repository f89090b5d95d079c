"""Tokens of data-plane instances: issued, rotated with an overlap, revoked.

A token is shown once, to whoever made it. Each change is one transaction with its audit entry, and
holds everywhere within seconds.
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
    """Make the first token of an instance; return it and its secret.

    Raises:
        Invalid: no instance can have that name.
        Conflict: the instance has a token that is good.
    """
    _check_name(instance)
    if good := good_tokens(instance, now):
        raise Conflict(f"{instance} has a token (…{good[0].hint}): rotate it, or revoke it first.")
    return _make(instance, PREFIX + secrets.token_urlsafe(32), actor, now)


@transaction.atomic
def rotate_token(
    *, instance: str, overlap: timedelta = OVERLAP, actor: Actor, now: datetime
) -> tuple[InstanceToken, str]:
    """Make a new token of an instance; its others are good for `overlap` more.

    Raises:
        Invalid: the overlap is out of its range.
        Conflict: there is nothing to rotate.
    """
    if not timedelta() <= overlap <= OVERLAP_MAX:
        raise Invalid(f"overlap_s: at least 0 and at most {OVERLAP_MAX.total_seconds():.0f}.")
    good = good_tokens(instance, now)
    if not good:
        raise Conflict(f"{instance} has no token that is good: issue one.")
    for token in good:
        if token.expires_at is None or token.expires_at > now + overlap:
            token.expires_at = now + overlap
            token.save(update_fields=["expires_at"])
    made, secret = _make(instance, PREFIX + secrets.token_urlsafe(32), actor, now)
    expires_at = (now + overlap).isoformat()
    after = {"made": str(made), "expiring": [str(token) for token in good], "at": expires_at}
    record_audit(actor=actor, action="instance_token.rotated", target=instance, after=after)
    callers.forget()
    return made, secret


@transaction.atomic
def revoke_token(*, token: InstanceToken, actor: Actor, now: datetime) -> InstanceToken:
    """Make a token open nothing any more. Revoking it again changes nothing."""
    row = InstanceToken.objects.select_for_update().get(pk=token.pk)
    if row.revoked_at is None:
        row.revoked_at = now
        row.save(update_fields=["revoked_at"])
        record_audit(actor=actor, action="instance_token.revoked", target=str(row))
        callers.forget()
    return row


@transaction.atomic
def adopt_token(*, instance: str, secret: str, actor: Actor, now: datetime) -> bool:
    """Issue a secret that exists already, as the environment of an installation gives it.

    Does nothing, and returns False, when it was ever issued: a revoked one stays revoked.
    """
    _check_name(instance)
    if InstanceToken.objects.filter(digest=digest_of(secret)).exists():
        return False
    _make(instance, secret, actor, now)
    return True


def good_tokens(instance: str, now: datetime) -> list[InstanceToken]:
    """Return the tokens that the instance may show now, the newest first, locked."""
    rows = InstanceToken.objects.select_for_update().filter(instance=instance, revoked_at=None)
    return [row for row in rows.order_by("-id") if row.is_good(now)]


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _check_name(instance: str) -> None:
    if not is_name(instance):
        raise Invalid(f"instance: a name has {NAME_RULE}.")


def _make(instance: str, secret: str, actor: Actor, now: datetime) -> tuple[InstanceToken, str]:
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
