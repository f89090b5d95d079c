"""Identities: tokens and homes of data-plane instances, refused messages, and servers that accept
commands without authentication."""

from __future__ import annotations

from datetime import datetime

from django.db import models


class InstanceToken(models.Model):
    """A token that a data-plane instance authenticates with and seals its messages with.

    The secret is not stored: `digest` is its SHA-256, for lookups, and `seal_root` verifies seals
    (`contract.message_signatures`). The token covers the instance and its workers.
    """

    instance = models.CharField(max_length=100)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    seal_root = models.CharField(max_length=64, editable=False)
    # The last characters of the secret, to distinguish tokens.
    hint = models.CharField(max_length=4)
    created_at = models.DateTimeField()
    created_by = models.CharField(max_length=150)
    # Set when the token is rotated: the end of the overlap.
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["instance", "-id"]
        indexes = [models.Index(fields=["instance"])]

    def __str__(self) -> str:
        return f"{self.instance} (…{self.hint})"

    def state(self, now: datetime) -> str:
        """Return active, expiring, expired or revoked."""
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is None:
            return "active"
        return "expiring" if self.expires_at > now else "expired"

    def is_valid(self, now: datetime) -> bool:
        return self.state(now) in ("active", "expiring")


class InstanceHome(models.Model):
    """The state directory from which an instance last reported, and whether it has its own token.

    Two instances with the same name have different homes; a restarted instance keeps its home.
    """

    name = models.CharField(max_length=200, primary_key=True)
    home = models.CharField(max_length=64)
    has_own_token = models.BooleanField()
    since = models.DateTimeField()

    def __str__(self) -> str:
        return self.name


class Refusal(models.Model):
    """The number of refused messages by instance (empty: unknown), channel and reason."""

    class Reason(models.TextChoices):
        UNSEALED = "unsealed", "it has no seal"
        UNKNOWN = "unknown", "no token was issued to an instance of that name"
        FORGED = "forged", "its seal was not made with the instance's token, or it was changed"
        REVOKED = "revoked", "its token was revoked, or has expired"
        FOREIGN = "foreign", "it is of another instance than its token"
        SECOND = "second", "another instance of that name is live"
        OLD = "old", "it was signed too long ago to rule out a replay"

    instance = models.CharField(max_length=100, blank=True)
    # A stream, or `report` or `routing-table` for REST.
    channel = models.CharField(max_length=50)
    reason = models.CharField(max_length=20, choices=Reason.choices)
    count = models.BigIntegerField()
    first_at = models.DateTimeField()
    last_at = models.DateTimeField()

    class Meta:
        ordering = ["-last_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["instance", "channel", "reason"], name="refusal_counted_once"
            )
        ]

    def __str__(self) -> str:
        return f"{self.instance or 'nobody'}: {self.reason} on {self.channel}"


class ServiceCheck(models.Model):
    """The last check whether a server accepts commands without authentication.

    Any client that reaches an open Triton can run code in it; any client that reaches an open
    MLflow can set the alias `candidate`. `trouble` says why the check failed.
    """

    class Kind(models.TextChoices):
        TRITON = "triton", "Triton"
        MLFLOW = "mlflow", "MLflow"

    address = models.CharField(max_length=1_000, primary_key=True)
    kind = models.CharField(max_length=20, choices=Kind.choices)
    # The cluster of a Triton server; empty for others.
    cluster = models.CharField(max_length=100, blank=True)
    is_open = models.BooleanField()
    trouble = models.TextField(blank=True)
    checked_at = models.DateTimeField()

    class Meta:
        ordering = ["kind", "address"]

    def __str__(self) -> str:
        return self.address

    @property
    def danger(self) -> str:
        """What an unauthenticated client can do; empty if the server is not open."""
        if not self.is_open:
            return ""
        if self.kind == self.Kind.TRITON:
            return "anyone who reaches it can load code, which runs there"
        return "anyone who reaches it can set candidate, which starts a rollout"
