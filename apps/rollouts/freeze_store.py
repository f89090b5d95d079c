"""Creates and ends freeze windows. Each change is one transaction with its audit entry."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db import transaction

from apps.lib.actors import Actor
from apps.lib.errors import Conflict, Invalid
from apps.lib.validation import check_row
from apps.models.audit import record_audit
from apps.models.models import RegisteredModel, Role
from apps.rollouts.freezes import WEEK, open_until, read_zone
from apps.rollouts.models import FreezeWindow

LONGEST = timedelta(days=365)


def role_to_freeze(model: RegisteredModel | None) -> Role:
    """Return the role that is required to freeze `model` (None: all models)."""
    return Role.ADMIN if model is None else Role.OPERATOR


@transaction.atomic
def create_freeze(
    *,
    model: RegisteredModel | None,
    reason: str,
    starts_at: datetime,
    ends_at: datetime,
    is_weekly: bool = False,
    time_zone: str = "UTC",
    actor: Actor,
    now: datetime,
) -> FreezeWindow:
    """Create a window in which no rollout of `model` (None: all models) starts or advances.

    A weekly window recurs at the same local time of `time_zone`, an IANA name.

    Raises:
        Invalid: it ends before it starts or is already over, lasts longer than a year, recurs
            before it has ended, has no reason, or its time zone does not exist.
    """
    read_zone(time_zone)
    reason = reason.strip()
    if not reason:
        raise Invalid(
            "required; it is shown to owners of rollouts that the freeze holds.", field="reason"
        )
    if ends_at <= starts_at:
        raise Invalid("the window must end after it starts.", field="ends_at")
    if ends_at - starts_at > LONGEST:
        raise Invalid("the window may last at most one year (365 days).", field="ends_at")
    if is_weekly and ends_at - starts_at >= WEEK:
        raise Invalid("a weekly window must be shorter than a week.", field="ends_at")
    if not is_weekly and ends_at <= now:
        raise Invalid("the window is already over.", field="ends_at")
    window = FreezeWindow(
        model=model,
        reason=reason,
        starts_at=starts_at,
        ends_at=ends_at,
        is_weekly=is_weekly,
        time_zone=time_zone,
        created_by=actor.name,
        created_at=now,
    )
    check_row(window, {"reason"})
    window.save()
    record_audit(actor=actor, action="freeze.created", target=_name(window), after=_audited(window))
    return window


@transaction.atomic
def end_freeze(*, window: FreezeWindow, actor: Actor, now: datetime) -> None:
    """End a window: an open one ends now, any other one is deleted.

    A weekly one is always deleted, as it would recur.

    Raises:
        Conflict: it is over, or another person deleted it.
    """
    rows = FreezeWindow.objects.select_for_update(of=("self",)).select_related("model")
    row = rows.filter(pk=window.pk).first()
    if row is None:
        raise Conflict("The freeze window does not exist any more: another person deleted it.")
    if not row.is_weekly and row.ends_at <= now:
        raise Conflict(f"The freeze window ended at {row.ends_at:%Y-%m-%d %H:%M} UTC.")
    before = _audited(row)
    if row.is_weekly or open_until(row, now) is None or now <= row.starts_at:
        row.delete()
        record_audit(actor=actor, action="freeze.deleted", target=_name(row), before=before)
        return
    row.ends_at = now
    row.save(update_fields=["ends_at"])
    record_audit(
        actor=actor, action="freeze.ended", target=_name(row), before=before, after=_audited(row)
    )


def _name(window: FreezeWindow) -> str:
    return str(window.model.name) if window.model else "all models"


def _audited(window: FreezeWindow) -> dict[str, object]:
    return {
        "starts_at": window.starts_at.isoformat(),
        "ends_at": window.ends_at.isoformat(),
        "is_weekly": window.is_weekly,
        "time_zone": window.time_zone,
        "reason": window.reason,
    }
