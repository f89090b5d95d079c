"""Webhook signatures by https://www.standardwebhooks.com (HMAC-SHA256). Pure."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Iterable

PREFIX = "whsec_"
# The specification allows 24 to 64.
SECRET_BYTES = 32


def new_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def sign(secret: str, webhook_id: str, timestamp_s: int, body: bytes) -> str:
    """Return `v1,` and the base64 of the HMAC over `id.timestamp.body`."""
    key = base64.b64decode(secret.removeprefix(PREFIX))
    signed = b".".join([webhook_id.encode(), str(timestamp_s).encode(), body])
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def build_headers(
    secrets_of: Iterable[str], webhook_id: str, timestamp_s: int, body: bytes
) -> dict[str, str]:
    """Return the three headers, with one signature for each secret (two during a rotation)."""
    signatures = [sign(secret, webhook_id, timestamp_s, body) for secret in secrets_of]
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(signatures),
    }
