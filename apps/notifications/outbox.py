"""The outbox: messages are claimed by a lease and tried until delivered or given up.

Delivery is at least once. A message is claimed in one transaction, sent outside of any, and settled
in another. If the sender dies in between, its lease expires and the message is sent again under the
same id.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Q

from apps.models.models import RegisteredModel
from apps.notifications.events import is_subscribed, to_storable
from apps.notifications.models import NotificationTarget, OutboxMessage

# Pauses after each failed attempt, 22 hours in total; then the message is given up.
BACK_OFF_S = (5, 30, 120, 600, 3_600, 10_800, 21_600, 43_200)
ATTEMPTS_MAX = len(BACK_OFF_S) + 1
# Longer than any attempt, with DNS lookups and each response of a mail server.
LEASE = timedelta(seconds=60)
ERROR_LENGTH_MAX = 500
OPEN = Q(delivered_at=None, gave_up_at=None)


def enqueue(
    *, event: str, model: RegisteredModel, payload: dict[str, Any], now: datetime
) -> list[OutboxMessage]:
    """Write one message for each active target that receives `event` of `model`.

    Call it inside the transaction of the event: both commit, or neither. It takes no lock that
    blocks changes of a target, and makes no network call.
    """
    targets = NotificationTarget.objects.filter(
        Q(model=None) | Q(model=model), is_active=True
    ).order_by("pk")
    data = to_storable({"model": model.name, **payload})
    return OutboxMessage.objects.bulk_create(
        [
            build_message(target, event, data, now)
            for target in targets
            if is_subscribed(event, target.events)
        ]
    )


def build_message(
    target: NotificationTarget, event: str, data: dict[str, Any], now: datetime
) -> OutboxMessage:
    return OutboxMessage(
        target=target, event=event, payload=data, created_at=now, next_attempt_at=now
    )


def due_targets(now: datetime) -> list[int]:
    """Return the primary keys of active targets with due messages, longest due first."""
    due = OutboxMessage.objects.filter(OPEN, next_attempt_at__lte=now, target__is_active=True)
    keys = due.order_by("next_attempt_at").values_list("target_id", flat=True)[:1_000]
    return list(dict.fromkeys(keys))


@transaction.atomic
def claim(target_id: int, now: datetime) -> OutboxMessage | None:
    """Lease the oldest due message of a target for `LEASE`; None when nothing is due.

    Only the holder of the lease sends the message. Rows locked by another claim are skipped.
    """
    message = (
        OutboxMessage.objects.select_for_update(skip_locked=True, of=("self",))
        .filter(OPEN, target_id=target_id, target__is_active=True, next_attempt_at__lte=now)
        .order_by("created_at", "id")
        .first()
    )
    if message is None:
        return None
    if message.attempts >= ATTEMPTS_MAX:
        # Each sender died or was killed before it could settle the message.
        message.gave_up_at, message.last_error = now, "no attempt ever came to an end"
        message.save(update_fields=["gave_up_at", "last_error"])
        return None
    message.attempts += 1
    message.next_attempt_at = now + LEASE
    message.save(update_fields=["attempts", "next_attempt_at"])
    return OutboxMessage.objects.select_related("target").get(pk=message.pk)


def settle_delivered(message: OutboxMessage, now: datetime) -> None:
    """Record a delivery, also after the lease expired: the message did arrive."""
    OutboxMessage.objects.filter(pk=message.pk, delivered_at=None).update(
        delivered_at=now, gave_up_at=None, last_error=""
    )


def settle_failed(
    message: OutboxMessage, error: str, now: datetime, retry_after_s: int = 0
) -> None:
    """Record a failed attempt: set the time of the next one, or give the message up."""
    reason = to_storable(error)[:ERROR_LENGTH_MAX]
    # If another sender claimed the message after the lease expired, that one settles it.
    owned = OutboxMessage.objects.filter(OPEN, pk=message.pk, attempts=message.attempts)
    if message.attempts >= ATTEMPTS_MAX:
        owned.update(gave_up_at=now, last_error=reason)
        return
    wait_s = max(delay_s(message), retry_after_s)
    owned.update(next_attempt_at=now + timedelta(seconds=wait_s), last_error=reason)


def postpone(message: OutboxMessage, now: datetime) -> None:
    """Delay all other open messages of the target, whose endpoint is away, as long as this one.

    The delay does not count as an attempt of the other messages.
    """
    until = now + timedelta(seconds=delay_s(message))
    OutboxMessage.objects.filter(
        OPEN, target_id=message.target_id, next_attempt_at__lt=until
    ).exclude(pk=message.pk).update(next_attempt_at=until)


def delay_s(message: OutboxMessage) -> float:
    """Return the pause after the last attempt; a jitter by message id adds up to 10 %."""
    base = BACK_OFF_S[min(message.attempts, len(BACK_OFF_S)) - 1]
    return base * (1 + (message.pk.int % 1_000) / 10_000)


def give_up_open(target: NotificationTarget, reason: str, now: datetime) -> int:
    """Give up the open messages of a target that was deactivated; return their number."""
    return OutboxMessage.objects.filter(OPEN, target=target).update(
        gave_up_at=now, last_error=reason[:ERROR_LENGTH_MAX]
    )
