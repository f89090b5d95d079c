"""API tokens, and the answers kept so that a repeated request with the same key acts once."""

from __future__ import annotations

import hashlib
import secrets

from django.conf import settings
from django.db import models


def digest_token(token: str) -> str:
    """Return the only form of a token that is stored: its SHA-256 in hex."""
    return hashlib.sha256(token.encode()).hexdigest()


class ApiToken(models.Model):
    """A user's key to the REST API. Shown once, when it is made; only its digest is kept."""

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
        """Make a token for a user, in place of one of the same name; return it and its secret."""
        secret = f"ilk_{secrets.token_urlsafe(32)}"
        token, _ = cls.objects.update_or_create(
            user_id=user_id,
            name=name,
            defaults={"digest": digest_token(secret), "expires_at": None},
        )
        return token, secret


class IdempotencyRecord(models.Model):
    """The answer to a request that carried an Idempotency-Key, given again to a repetition."""

    # The user that the credentials of the request proved.
    caller = models.CharField(max_length=64)
    key = models.CharField(max_length=200)
    request_digest = models.CharField(max_length=64)
    # None while the first request is being answered.
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
    """What was dropped of a kind of rows (see `controlplane.retention`), and how far that came."""

    name = models.CharField(max_length=50, primary_key=True)
    ran_at = models.DateTimeField()
    # Of the last run that freed anything.
    freed_at = models.DateTimeField(null=True)
    rows = models.BigIntegerField(default=0)
    bytes = models.BigIntegerField(default=0)
    # Ever.
    rows_total = models.BigIntegerField(default=0)
    bytes_total = models.BigIntegerField(default=0)
    # More was due than the last run had time for.
    is_behind = models.BooleanField(default=False)
    # Why less was dropped than the setting says, or nothing.
    held = models.CharField(max_length=500, blank=True)
    error = models.TextField(blank=True)
    # Up to where it is done, for kinds that go in the order of time.
    mark = models.DateTimeField(null=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name
