"""Notification targets and the outbox. The outbox row is the source of truth, not the task queue.

A message is open until it is delivered or given up. Its primary key is the `webhook-id`, so all
attempts carry the same id.
"""

from __future__ import annotations

import uuid

from django.db import models
from django.db.models import Q

from apps.models.models import RegisteredModel, valid_name


class NotificationTarget(models.Model):
    """One address and the events that it receives."""

    class Kind(models.TextChoices):
        WEBHOOK = "webhook", "Webhook (signed)"
        SLACK = "slack", "Slack-compatible"
        EMAIL = "email", "E-mail"

    name = models.CharField(max_length=100, unique=True, validators=[valid_name])
    kind = models.CharField(max_length=10, choices=Kind.choices)
    # A URL or an e-mail address. A URL may hold a secret: only administrators see all of it.
    address = models.CharField(max_length=1_000)
    # Signing needs the secret itself, not a digest. It is shown once and never again.
    secret = models.CharField(max_length=100, blank=True, editable=False)
    # After a rotation both secrets sign until then, so that the receiver can switch.
    previous_secret = models.CharField(max_length=100, blank=True, editable=False)
    previous_secret_until = models.DateTimeField(null=True, editable=False)
    # Event types; empty: all.
    events: models.JSONField[list[str], list[str]] = models.JSONField(default=list, blank=True)
    # None: all models.
    model = models.ForeignKey(
        RegisteredModel, null=True, blank=True, on_delete=models.CASCADE, related_name="+"
    )
    is_active = models.BooleanField(default=True)
    inactive_reason = models.CharField(max_length=300, blank=True)
    created_by = models.CharField(max_length=150)
    created_at = models.DateTimeField()

    class Meta:
        verbose_name = "notification target"
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class OutboxMessage(models.Model):
    """One event for one target, written in the transaction of the event."""

    class State(models.TextChoices):
        WAITING = "waiting"
        RETRYING = "retrying"
        DELIVERED = "delivered"
        GAVE_UP = "gave_up"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    target = models.ForeignKey(
        NotificationTarget, on_delete=models.CASCADE, related_name="messages"
    )
    event = models.CharField(max_length=100)
    payload = models.JSONField(default=dict)
    created_at = models.DateTimeField()
    attempts = models.PositiveIntegerField(default=0)
    # When the message is due. A sender moves this time ahead before it sends: its lease.
    next_attempt_at = models.DateTimeField()
    delivered_at = models.DateTimeField(null=True, blank=True)
    last_error = models.CharField(max_length=500, blank=True)
    gave_up_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-created_at", "-id"]
        indexes = [
            models.Index(
                fields=["next_attempt_at"],
                condition=Q(delivered_at=None, gave_up_at=None),
                name="outbox_open",
            ),
            models.Index(fields=["target", "-created_at"], name="outbox_of_target"),
            models.Index(fields=["-created_at", "-id"], name="outbox_latest"),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(delivered_at=None) | Q(gave_up_at=None),
                name="outbox_delivered_or_gave_up",
            )
        ]

    def __str__(self) -> str:
        return f"{self.event} to {self.target}"

    @property
    def state(self) -> str:
        if self.delivered_at is not None:
            return self.State.DELIVERED
        if self.gave_up_at is not None:
            return self.State.GAVE_UP
        return self.State.RETRYING if self.last_error else self.State.WAITING
