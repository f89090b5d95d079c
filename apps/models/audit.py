"""The audit log of changes to serving: actor, origin, time, values before and after."""

from __future__ import annotations

from typing import Any

from apps.lib.actors import Actor
from apps.models.models import AuditEntry


def record_audit(
    *,
    actor: Actor,
    action: str,
    target: str,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> None:
    """Append one entry in the caller's transaction, so that both commit or neither."""
    AuditEntry.objects.create(
        actor=actor.name,
        origin=actor.origin,
        action=action,
        target=target,
        before=before or {},
        after=after or {},
    )
