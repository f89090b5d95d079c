"""Who is who: data-plane instances' tokens and homes, what was refused, and which servers take
commands from strangers."""

from __future__ import annotations

from datetime import datetime

from django.db import models


class InstanceToken(models.Model):
    """What a data-plane instance shows to the control plane, and seals its messages with.

    The token itself is kept nowhere: `digest` is its SHA-256, by which it is found, and `seal_root`
    what its seals are checked with (`contract.message_signatures`). It holds for the instance and
    its workers.
    """

    instance = models.CharField(max_length=100)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    seal_root = models.CharField(max_length=64, editable=False)
    # The token's last characters, to tell tokens apart.
    hint = models.CharField(max_length=4)
    created_at = models.DateTimeField()
    created_by = models.CharField(max_length=150)
    # When one that was rotated away stops being good.
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

    def is_good(self, now: datetime) -> bool:
        return self.state(now) in ("active", "expiring")


class InstanceHome(models.Model):
    """The state directory from which an instance last reported, and whether its token is its own.

    Two of one name have two, a restarted one has the same.
    """

    name = models.CharField(max_length=200, primary_key=True)
    home = models.CharField(max_length=64)
    has_own_token = models.BooleanField()
    since = models.DateTimeField()

    def __str__(self) -> str:
        return self.name


class Refusal(models.Model):
    """How often something was refused that came in an instance's name; empty: nobody's we know."""

    class Reason(models.TextChoices):
        UNSEALED = "unsealed", "it has no seal"
        UNKNOWN = "unknown", "no token was issued to an instance of that name"
        FORGED = "forged", "its seal was not made with the instance's token, or it was changed"
        REVOKED = "revoked", "its token was revoked, or has expired"
        FOREIGN = "foreign", "it is of another instance than its token"
        SECOND = "second", "another instance of that name is live"
        OLD = "old", "it was sealed too long ago to be told from a repetition"

    instance = models.CharField(max_length=100, blank=True)
    # A stream, or `report` and `routing-table` of those that came by REST.
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
    """Whether a server that this installation commands asks others for a secret, when last asked.

    Whoever reaches an open Triton can run code in it; whoever reaches an open MLflow can name a
    candidate. `trouble` says why nobody knows.
    """

    class Kind(models.TextChoices):
        TRITON = "triton", "Triton"
        MLFLOW = "mlflow", "MLflow"

    address = models.CharField(max_length=1_000, primary_key=True)
    kind = models.CharField(max_length=20, choices=Kind.choices)
    # Of a Triton.
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
        """Say what a stranger can do, or nothing."""
        if not self.is_open:
            return ""
        if self.kind == self.Kind.TRITON:
            return "anyone who reaches it can load code, which runs there"
        return "anyone who reaches it can set candidate, which starts a rollout"
