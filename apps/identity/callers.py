"""Identifies the calling instance by its bearer token and caches the result for seconds.

Instances request the routing table every two seconds; most of these requests need no database.
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

# A token that another process revoked may stay valid here for this long.
CACHED_S = 5.0
CACHED_MAX = 10_000
# The precision of `last_used_at`.
LAST_USED_PRECISION = timedelta(minutes=1)


@dataclass(frozen=True)
class Caller:
    """The owner of a token: an instance, or any holder of the shared token."""

    # Empty for the shared token.
    instance: str

    def may_speak_for(self, name: str) -> bool:
        """Return whether `name` is the caller's instance or one of its workers."""
        return not self.instance or group_of(name) == self.instance


SHARED = Caller("")
_known: dict[str, tuple[Caller, float]] = {}


def identify(secret: str) -> Caller | None:
    """Return the owner of a token; None for an unknown, expired or revoked one."""
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
    """Clear the cache after a token changed in this process."""
    _known.clear()


def revoked_instance(secret: str) -> str:
    """Return the instance that a token was issued to, even if invalid now; empty: unknown."""
    digest = hashlib.sha256(secret.encode()).hexdigest()
    row = InstanceToken.objects.filter(digest=digest).only("instance").first()
    return row.instance if row is not None else ""


def _look_up(digest: str) -> Caller | None:
    row = InstanceToken.objects.filter(digest=digest).first()
    now = database_now()
    _known.pop(digest, None)
    if row is None or not row.is_valid(now):
        return None
    is_stale = Q(last_used_at=None) | Q(last_used_at__lt=now - LAST_USED_PRECISION)
    InstanceToken.objects.filter(is_stale, pk=row.pk).update(last_used_at=now)
    if len(_known) >= CACHED_MAX:
        _known.clear()
    caller = Caller(row.instance)
    _known[digest] = caller, monotonic() + CACHED_S
    return caller
