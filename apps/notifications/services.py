"""Changes of targets and messages. Each is one transaction with its audit entry."""

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
from apps.notifications.outbox import build_message, give_up_open
from apps.notifications.signing import new_secret

TARGETS_MAX = 100
# How long both secrets sign after a rotation.
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
    """Create a target. The returned row has the `secret` of a webhook, which is not shown again.

    Raises:
        Invalid: a value is wrong; the message names it. E-mail needs a mail server.
        Conflict: another target has that name, or there are `TARGETS_MAX` targets.
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
        raise Conflict(f"A notification target {name!r} exists already.")
    if NotificationTarget.objects.count() >= TARGETS_MAX:
        raise Conflict(f"There are {TARGETS_MAX} notification targets, which is the maximum.")
    target.save(force_insert=True)
    _audit(actor, "created", target, after=_facts(target))
    return target


@transaction.atomic
def change_target(
    *, target: NotificationTarget, actor: Actor, now: datetime, **changes: Any
) -> NotificationTarget:
    """Change address, events or model. Open messages go to the new address.

    Raises:
        Invalid: a value is wrong; nothing was changed.
    """
    row = _lock(target)
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
    """Activate a target: it receives events from now on. Repeating it changes nothing."""
    row = _lock(target)
    if not row.is_active:
        row.is_active, row.inactive_reason = True, ""
        row.save(update_fields=["is_active", "inactive_reason"])
        _audit(actor, "activated", row)
    return row


@transaction.atomic
def deactivate_target(
    *, target: NotificationTarget, actor: Actor, now: datetime, reason: str = ""
) -> NotificationTarget:
    """Deactivate a target: nothing is sent to it, and its open messages are given up."""
    row = _lock(target)
    if row.is_active:
        row.is_active, row.inactive_reason = False, reason or f"by {actor.name}"
        row.save(update_fields=["is_active", "inactive_reason"])
        given_up = give_up_open(row, reason or DEACTIVATED_REASON, now)
        _audit(actor, "deactivated", row, after={"given_up": given_up, "reason": reason})
    return row


def deactivate_gone(*, target: NotificationTarget, now: datetime) -> None:
    """Deactivate a target whose endpoint answered 410 Gone."""
    deactivate_target(target=target, actor=INTERLOCK, now=now, reason=GONE_REASON)


@transaction.atomic
def rotate_secret(*, target: NotificationTarget, actor: Actor, now: datetime) -> NotificationTarget:
    """Replace the secret of a webhook; the returned row has it. The old one signs for a day.

    Raises:
        Conflict: the target is not a webhook.
    """
    row = _lock(target)
    if row.kind != Kind.WEBHOOK:
        raise Conflict(f"{row.name} is not a webhook: it has no secret.")
    row.previous_secret, row.previous_secret_until = row.secret, now + ROTATION
    row.secret = new_secret()
    row.save(update_fields=["secret", "previous_secret", "previous_secret_until"])
    _audit(actor, "secret_rotated", row)
    return row


@transaction.atomic
def send_test(*, target: NotificationTarget, actor: Actor, now: datetime) -> OutboxMessage:
    """Write a test message to the outbox; it is delivered like any other message.

    Raises:
        Conflict: the target is not active.
    """
    row = _lock(target)
    if not row.is_active:
        raise Conflict(f"{row.name} is not active: activate it first.")
    message = build_message(row, TEST, {"actor": actor.name}, now)
    message.save(force_insert=True)
    _audit(actor, "tested", row)
    return message


@transaction.atomic
def retry_message(*, message: OutboxMessage, actor: Actor, now: datetime) -> OutboxMessage:
    """Retry a message at once that was given up or waits for its next attempt.

    Raises:
        Conflict: it was delivered, its target is not active, or it is being sent now.
    """
    target = _lock(message.target)
    row = OutboxMessage.objects.select_for_update(of=("self",)).get(pk=message.pk)
    row.target = target
    if row.delivered_at is not None:
        raise Conflict("The message was delivered already.")
    if not target.is_active:
        raise Conflict(f"{target.name} is not active: activate it first.")
    if row.attempts and row.gave_up_at is None and not row.last_error:
        raise Conflict("The message is being sent: wait for the result.")
    row.gave_up_at, row.attempts, row.next_attempt_at = None, 0, now
    row.save(update_fields=["gave_up_at", "attempts", "next_attempt_at"])
    _audit(actor, "retried", target, after={"delivery": str(row.pk)})
    return row


def prune_messages(*, now: datetime) -> int:
    """Delete messages that were settled more than `KEEP` ago; return their number."""
    settled = Q(delivered_at__lt=now - KEEP) | Q(gave_up_at__lt=now - KEEP)
    return OutboxMessage.objects.filter(settled).delete()[0]


def _lock(target: NotificationTarget) -> NotificationTarget:
    # NO KEY: a concurrent `enqueue` for this target does not wait for this lock.
    rows = NotificationTarget.objects.select_for_update(of=("self",), no_key=True)
    return rows.select_related("model").get(pk=target.pk)


def _check(target: NotificationTarget) -> None:
    check_row(target, ("name", "kind", "address"))
    unknown = [event for event in target.events if event not in EVENTS]
    if unknown or len(set(target.events)) != len(target.events):
        reason = f"unknown event {unknown[0]!r}" if unknown else "an event is listed twice"
        raise Invalid(f"{reason}; expected some of {', '.join(EVENTS)}.", field="events")
    if target.kind != Kind.EMAIL:
        addresses.check_url(target.address, policy=egress_policy())
        return
    addresses.check_email(target.address)
    if not settings.EMAIL_SERVER:
        raise Invalid("e-mail is off; set INTERLOCK_EMAIL_URL to turn it on.", field="kind")


def _facts(target: NotificationTarget) -> dict[str, Any]:
    return {
        "kind": target.kind,
        "address": addresses.mask_address(target.address),
        "events": target.events or "all",
        "model": target.model.name if target.model else "all",
    }


def _audit(actor: Actor, action: str, target: NotificationTarget, **facts: dict[str, Any]) -> None:
    record_audit(actor=actor, action=f"notification_target.{action}", target=target.name, **facts)
