"""Writes: who is told of what. Each is one transaction with its audit entry."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Q

from apps.lib.actors import INTERLOCK, Actor
from apps.lib.errors import Conflict, Invalid
from apps.lib.validation import check_row
from apps.models.audit import record_audit
from apps.models.internal_hosts import egress_policy
from apps.models.models import RegisteredModel
from apps.notifications import addresses
from apps.notifications.events import EVENTS, TEST
from apps.notifications.models import NotificationTarget, OutboxMessage
from apps.notifications.outbox import give_up_open, message_for
from apps.notifications.signing import new_secret

TARGETS_MAX = 100
# While a receiver changes over, both secrets sign.
ROTATION = timedelta(hours=24)
KEEP = timedelta(days=30)
GONE_REASON = "the endpoint answered 410 Gone"
DEACTIVATED_REASON = "the target was deactivated"
Kind = NotificationTarget.Kind


@transaction.atomic
def create_target(
    *,
    name: str,
    kind: str,
    address: str,
    events: list[str],
    model: RegisteredModel | None,
    actor: Actor,
    now: datetime,
) -> NotificationTarget:
    """Make a target; a webhook's `secret` is on the row returned, and is shown by nothing later.

    Raises:
        Invalid: a value is wrong; the message says which. E-mail needs a mail server.
        Conflict: another target has that name, or there are as many as there may be.
    """
    target = NotificationTarget(
        name=name,
        kind=kind,
        address=address,
        events=events,
        model=model,
        secret=new_secret() if kind == Kind.WEBHOOK else "",
        created_by=actor.name,
        created_at=now,
    )
    _check(target)
    if NotificationTarget.objects.filter(name=name).exists():
        raise Conflict(f"There is a notification target {name!r} already.")
    if NotificationTarget.objects.count() >= TARGETS_MAX:
        raise Conflict(f"There are {TARGETS_MAX} notification targets, the most there may be.")
    target.save(force_insert=True)
    _audit(actor, "created", target, after=_facts(target))
    return target


@transaction.atomic
def change_target(
    *, target: NotificationTarget, actor: Actor, now: datetime, **changes: Any
) -> NotificationTarget:
    """Change what is named of address, events and model; what is open goes to the new address.

    Raises:
        Invalid: a value is wrong; nothing was changed.
    """
    row = _locked(target)
    before = _facts(row)
    for name, value in changes.items():
        setattr(row, name, value)
    _check(row)
    row.save(update_fields=["address", "events", "model"])
    _audit(actor, "changed", row, before=before, after=_facts(row))
    return row


@transaction.atomic
def activate_target(
    *, target: NotificationTarget, actor: Actor, now: datetime
) -> NotificationTarget:
    """Tell the target of what happens from now on. Activating it again changes nothing."""
    row = _locked(target)
    if not row.is_active:
        row.is_active, row.inactive_reason = True, ""
        row.save(update_fields=["is_active", "inactive_reason"])
        _audit(actor, "activated", row)
    return row


@transaction.atomic
def deactivate_target(
    *, target: NotificationTarget, actor: Actor, now: datetime, reason: str = ""
) -> NotificationTarget:
    """Send nothing to the target any more; what is open for it is given up."""
    row = _locked(target)
    if row.is_active:
        row.is_active, row.inactive_reason = False, reason or f"by {actor.name}"
        row.save(update_fields=["is_active", "inactive_reason"])
        given_up = give_up_open(row, reason or DEACTIVATED_REASON, now)
        _audit(actor, "deactivated", row, after={"given_up": given_up, "reason": reason})
    return row


def deactivate_gone(*, target: NotificationTarget, now: datetime) -> None:
    """The endpoint said that it wants nothing any more."""
    deactivate_target(target=target, actor=INTERLOCK, now=now, reason=GONE_REASON)


@transaction.atomic
def rotate_secret(*, target: NotificationTarget, actor: Actor, now: datetime) -> NotificationTarget:
    """Give a webhook a new secret, which is on the row returned; the old one signs for a day more.

    Raises:
        Conflict: only webhooks are signed.
    """
    row = _locked(target)
    if row.kind != Kind.WEBHOOK:
        raise Conflict(f"{row.name} is no webhook: it has no secret.")
    row.previous_secret, row.previous_secret_until = row.secret, now + ROTATION
    row.secret = new_secret()
    row.save(update_fields=["secret", "previous_secret", "previous_secret_until"])
    _audit(actor, "secret_rotated", row)
    return row


@transaction.atomic
def send_test(*, target: NotificationTarget, actor: Actor, now: datetime) -> OutboxMessage:
    """Put a test message into the outbox: it takes the way that every other takes.

    Raises:
        Conflict: the target is not active.
    """
    row = _locked(target)
    if not row.is_active:
        raise Conflict(f"{row.name} is not active: activate it first.")
    message = message_for(row, TEST, {"actor": actor.name}, now)
    message.save(force_insert=True)
    _audit(actor, "tested", row)
    return message


@transaction.atomic
def retry_message(*, message: OutboxMessage, actor: Actor, now: datetime) -> OutboxMessage:
    """Try a message again that was given up, or at once one that waits for its next attempt.

    Raises:
        Conflict: it was delivered, its target is not active, or it is being sent this moment.
    """
    target = _locked(message.target)
    row = OutboxMessage.objects.select_for_update(of=("self",)).get(pk=message.pk)
    row.target = target
    if row.delivered_at is not None:
        raise Conflict("This was delivered already.")
    if not target.is_active:
        raise Conflict(f"{target.name} is not active: activate it first.")
    if row.attempts and row.gave_up_at is None and not row.last_error:
        raise Conflict("This is being sent: wait for what becomes of it.")
    row.gave_up_at, row.attempts, row.next_attempt_at = None, 0, now
    row.save(update_fields=["gave_up_at", "attempts", "next_attempt_at"])
    _audit(actor, "retried", target, after={"delivery": str(row.pk)})
    return row


def prune_messages(*, now: datetime) -> int:
    """Delete what was settled long ago; what is open stays."""
    settled = Q(delivered_at__lt=now - KEEP) | Q(gave_up_at__lt=now - KEEP)
    return OutboxMessage.objects.filter(settled).delete()[0]


def _locked(target: NotificationTarget) -> NotificationTarget:
    # NO KEY: a rollout that enqueues for this target at the same moment waits for nobody.
    rows = NotificationTarget.objects.select_for_update(of=("self",), no_key=True)
    return rows.select_related("model").get(pk=target.pk)


def _check(target: NotificationTarget) -> None:
    check_row(target, ("name", "kind", "address"))
    unknown = [event for event in target.events if event not in EVENTS]
    if unknown or len(set(target.events)) != len(target.events):
        told = f"there is no event {unknown[0]!r}" if unknown else "an event is named twice"
        raise Invalid(f"events: {told} (there are: {', '.join(EVENTS)}).")
    if target.kind != Kind.EMAIL:
        addresses.check_url(target.address, policy=egress_policy())
        return
    addresses.check_email(target.address)
    if not settings.EMAIL_SERVER:
        raise Invalid("kind: e-mail is off here; the operator sets INTERLOCK_EMAIL_URL first.")


def _facts(target: NotificationTarget) -> dict[str, Any]:
    return {
        "kind": target.kind,
        "address": addresses.masked(target.address),
        "events": target.events or "all",
        "model": target.model.name if target.model else "all",
    }


def _audit(actor: Actor, done: str, target: NotificationTarget, **facts: dict[str, Any]) -> None:
    record_audit(actor=actor, action=f"notification_target.{done}", target=target.name, **facts)
