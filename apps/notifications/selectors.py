"""Reads for pages and the API: deliveries by state, and targets with counts."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count, Q, QuerySet

from apps.lib.errors import Invalid
from apps.notifications.models import NotificationTarget, OutboxMessage
from apps.notifications.outbox import OPEN

State = OutboxMessage.State
RECENT = timedelta(hours=24)
IN_STATE = {
    State.WAITING: OPEN & Q(last_error=""),
    State.RETRYING: OPEN & ~Q(last_error=""),
    State.DELIVERED: Q(delivered_at__isnull=False),
    State.GAVE_UP: Q(gave_up_at__isnull=False),
}


def list_deliveries(target: str = "", state: str = "") -> QuerySet[OutboxMessage]:
    """Return deliveries, newest first, optionally of one target (by name) or in one state.

    Raises:
        Invalid: the state is unknown.
    """
    rows = OutboxMessage.objects.select_related("target__model")
    if target:
        rows = rows.filter(target__name=target)
    if not state:
        return rows
    if state not in IN_STATE:
        raise Invalid(
            f"unknown state {state!r}; expected one of {', '.join(IN_STATE)}.", field="state"
        )
    return rows.filter(IN_STATE[State(state)])


def list_targets(now: datetime) -> QuerySet[Any]:
    """Return the targets with the counts `open` and, for the last 24 hours, `gave_up`."""
    is_open = Q(messages__delivered_at=None, messages__gave_up_at=None, messages__isnull=False)
    counted = NotificationTarget.objects.select_related("model").annotate(
        open=Count("messages", filter=is_open),
        gave_up=Count("messages", filter=Q(messages__gave_up_at__gt=now - RECENT)),
    )
    return counted.order_by("name")
