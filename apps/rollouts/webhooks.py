"""Webhook checks: what a service of the user's is asked, and how its answer is read."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from typing import Literal

import msgspec

from apps.rollouts.providers import Answer, Call, ProviderError, printable, shown_url
from apps.rollouts.verdicts import JSON


class Verdicted(msgspec.Struct):
    """What the service answers; more fields are its own affair."""

    verdict: Literal["pass", "fail", "inconclusive", "no-data"]
    reason: str = ""


_decoder = msgspec.json.Decoder(Verdicted)
SECRET_PREFIX = "whsec_"  # noqa: S105 (what a secret begins with)
FORM = '{"verdict": "pass|fail|inconclusive|no-data", "reason": "…"}'


def webhook_call(url: str, body: bytes, headers: Mapping[str, str]) -> Call:
    """Return the question as a call."""
    return Call(
        who=f"webhook at {shown_url(url)}",
        url=url,
        body=body,
        headers={"content-type": "application/json", **headers},
    )


def signed_headers(secret: str, message_id: str, at: datetime, body: bytes) -> dict[str, str]:
    """Return Standard Webhooks' headers; without a secret there is no signature among them.

    The secret is its bytes in base64 after `whsec_`, as that specification writes it, or plain
    text. Source: standardwebhooks.com, "Signature scheme".
    """
    stamp = str(int(at.timestamp()))
    headers = {"webhook-id": message_id, "webhook-timestamp": stamp}
    if secret:
        content = b".".join((message_id.encode(), stamp.encode(), body))
        digest = hmac.new(_key_of(secret), content, hashlib.sha256).digest()
        headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    return headers


def _key_of(secret: str) -> bytes:
    if secret.startswith(SECRET_PREFIX):
        return base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    return secret.encode()


def read_verdict(who: str, answer: Answer) -> dict[str, JSON]:
    """Return the observation: `where`, `verdict` and `reason`. Raises ProviderError."""
    if not 200 <= answer.status < 300:
        raise ProviderError(f"{who} answers {answer.status}")
    try:
        given = _decoder.decode(answer.body)
    except msgspec.DecodeError as error:
        raise ProviderError(f"{who} does not answer {FORM}: {printable(str(error))}") from None
    return {"where": who, "verdict": given.verdict, "reason": printable(given.reason)}
