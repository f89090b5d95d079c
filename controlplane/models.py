"""API tokens, responses stored for the Idempotency-Key, and runs of retention."""

from __future__ import annotations

import hashlib
import secrets

from django.conf import settings
from django.db import models


def digest_token(token: str) -> str:
    """Return the SHA-256 of a token in hex, the only form that is stored."""
    return hashlib.sha256(token.encode()).hexdigest()


class ApiToken(models.Model):
    """A user's token for the REST API. It is shown once; only its digest is stored."""

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="api_tokens"
    )
    name = models.CharField(max_length=100)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(fields=["user", "name"], name="token_name_once_per_user")
        ]

    def __str__(self) -> str:
        return self.name

    @classmethod
    def issue(cls, *, user_id: int, name: str) -> tuple[ApiToken, str]:
        """Create a token, or replace the user's token with this name; return it and its secret."""
        secret = f"ilk_{secrets.token_urlsafe(32)}"
        token, _ = cls.objects.update_or_create(
            user_id=user_id,
            name=name,
            defaults={"digest": digest_token(secret), "expires_at": None},
        )
        return token, secret


class IdempotencyRecord(models.Model):
    """The response to a request with an Idempotency-Key, returned again to repetitions."""

    # The authenticated user of the request.
    caller = models.CharField(max_length=64)
    key = models.CharField(max_length=200)
    request_digest = models.CharField(max_length=64)
    # None while the first request is running.
    status = models.PositiveSmallIntegerField(null=True)
    body = models.BinaryField(null=True)
    at = models.DateTimeField(db_index=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["caller", "key"], name="idempotency_key_once_per_caller"
            )
        ]


class RetentionRun(models.Model):
    """The deletions of one kind of rows (see `controlplane.retention`) and their progress."""

    name = models.CharField(max_length=50, primary_key=True)
    ran_at = models.DateTimeField()
    # The last run that freed anything: its time, rows and bytes.
    freed_at = models.DateTimeField(null=True)
    rows = models.BigIntegerField(default=0)
    bytes = models.BigIntegerField(default=0)
    # The totals of all runs.
    rows_total = models.BigIntegerField(default=0)
    bytes_total = models.BigIntegerField(default=0)
    # Whether the last run had no time for all expired rows.
    is_behind = models.BooleanField(default=False)
    # Why rows are kept beyond the setting, else empty.
    held = models.CharField(max_length=500, blank=True)
    error = models.TextField(blank=True)
    # The time up to which rows are deleted, for kinds deleted in the order of time.
    mark = models.DateTimeField(null=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name
