"""Which instance calls: what a bearer token says, remembered for seconds.

Instances ask for the routing table every two seconds; most of those requests need no database.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic

from django.conf import settings
from django.db.models import Q

from apps.identity.models import InstanceToken
from apps.lib.clock import database_now
from contract.message_signatures import group_of

# For so long a token that was revoked elsewhere may still open something.
REMEMBERED_S = 5.0
REMEMBERED_MAX = 10_000
# How exact `last_used_at` is.
USE_NOTED_EVERY = timedelta(minutes=1)


@dataclass(frozen=True)
class Caller:
    """Who shows a token: an instance, or whoever has the token that all of them share."""

    # Empty for the shared one.
    instance: str

    def may_speak_for(self, name: str) -> bool:
        """Say whether the caller is that process: an instance, or a worker of it."""
        return not self.instance or group_of(name) == self.instance


SHARED = Caller("")
_known: dict[str, tuple[Caller, float]] = {}


def identify(secret: str) -> Caller | None:
    """Return who shows that token, None for nobody who may call."""
    shared = settings.INSTANCE_TOKEN.encode()
    is_shared = bool(shared) and hmac.compare_digest(secret.encode(), shared)
    if is_shared and not settings.OWN_TOKENS_REQUIRED:
        return SHARED
    digest = hashlib.sha256(secret.encode()).hexdigest()
    caller, until = _known.get(digest, (None, 0.0))
    if caller is not None and monotonic() < until:
        return caller
    return _look_up(digest)


def forget() -> None:
    """Ask the database again: a token was changed here."""
    _known.clear()


def revoked_instance(secret: str) -> str:
    """Return whose token that was before it stopped being good; empty: it never was one."""
    digest = hashlib.sha256(secret.encode()).hexdigest()
    row = InstanceToken.objects.filter(digest=digest).only("instance").first()
    return row.instance if row is not None else ""


def _look_up(digest: str) -> Caller | None:
    row = InstanceToken.objects.filter(digest=digest).first()
    now = database_now()
    _known.pop(digest, None)
    if row is None or not row.is_good(now):
        return None
    noted = Q(last_used_at=None) | Q(last_used_at__lt=now - USE_NOTED_EVERY)
    InstanceToken.objects.filter(noted, pk=row.pk).update(last_used_at=now)
    if len(_known) >= REMEMBERED_MAX:
        _known.clear()
    caller = Caller(row.instance)
    _known[digest] = caller, monotonic() + REMEMBERED_S
    return caller
