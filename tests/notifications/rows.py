"""Targets and messages for tests of notifications."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models import F

from apps.lib.actors import Actor
from apps.lib.clock import database_now
from apps.models.models import RegisteredModel
from apps.notifications.models import NotificationTarget, OutboxMessage
from apps.notifications.outbox import enqueue
from apps.notifications.services import create_target

ADA = Actor("ada", "127.0.0.1")


def make_model(name: str = "digits") -> RegisteredModel:
    return RegisteredModel.objects.get_or_create(name=name)[0]


def make_target(address: str, **fields: Any) -> NotificationTarget:
    defaults: dict[str, Any] = {"name": "ops", "kind": "webhook", "events": [], "model": None}
    return create_target(address=address, actor=ADA, now=database_now(), **(defaults | fields))


def enqueue_event(
    event: str = "rollout.baking", model: str = "digits", **payload: Any
) -> OutboxMessage:
    """Enqueue an event for the only target and return the message."""
    with transaction.atomic():
        (message,) = enqueue(
            event=event, model=make_model(model), payload=payload, now=database_now()
        )
    return message


def reread(message: OutboxMessage) -> OutboxMessage:
    return OutboxMessage.objects.select_related("target").get(pk=message.pk)


def pass_time(**span: float) -> None:
    """Move all due times back by `span`: leases expire and pauses end."""
    OutboxMessage.objects.update(next_attempt_at=F("next_attempt_at") - timedelta(**span))
