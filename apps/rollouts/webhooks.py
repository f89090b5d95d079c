"""Calls the webhook of a check, and reads the verdict that it returns.

It must call only addresses that notifications may use, by the same code: a user enters the address.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec

from apps.lib.egress import EgressPolicy
from apps.lib.errors import Invalid, Unavailable
from apps.models.internal_hosts import configured_policy
from apps.notifications.addresses import check_url
from apps.notifications.http_post import Answer, post
from apps.notifications.signing import build_headers
from apps.rollouts.provider_client import CALL_S, ProviderError, printable, redact_url
from apps.rollouts.verdicts import JSON

ANSWER_BYTES_MAX = 16_384
FORM = '{"verdict": "pass|fail|inconclusive|no-data", "reason": "…"}'


class VerdictResponse(msgspec.Struct):
    """The answer of the service; additional fields are ignored."""

    verdict: Literal["pass", "fail", "inconclusive", "no-data"]
    reason: str = ""


_decoder = msgspec.json.Decoder(VerdictResponse)


def problem_of_address(settings: Mapping[str, Any]) -> str:
    """Describe why no check may call the address in the settings; empty if it is allowed."""
    try:
        check_url(str(settings.get("url", "")), policy=configured_policy())
    except Invalid as error:
        return error.message.replace("address: ", "url: ", 1).rstrip(".")
    return ""


def signed_headers(secret: str, message_id: str, at: datetime, body: bytes) -> dict[str, str]:
    """Return the headers of Standard Webhooks, without a signature if there is no secret."""
    secrets = [secret] if secret else []
    signed = build_headers(secrets, message_id, int(at.timestamp()), body)
    return {name: value for name, value in signed.items() if value}


def call_webhook(
    url: str, body: bytes, signed: Mapping[str, str], policy: EgressPolicy
) -> dict[str, JSON]:
    """Return the observation: `where`, `verdict` and `reason`. Raises ProviderError."""
    service = f"webhook at {redact_url(url)}"
    sent = {"content-type": "application/json", **signed}
    try:
        answer = post(url, sent, body, policy=policy, timeout_s=CALL_S, bytes_max=ANSWER_BYTES_MAX)
    except Unavailable as error:
        raise ProviderError(f"{service}: {printable(error.message)}") from None
    return read_verdict(service, answer)


def read_verdict(service: str, answer: Answer) -> dict[str, JSON]:
    """Return the observation. Raises ProviderError unless the answer has the form FORM."""
    if not 200 <= answer.status < 300:
        raise ProviderError(f"{service} returned {answer.status}")
    try:
        response = _decoder.decode(answer.text)
    except msgspec.DecodeError as error:
        raise ProviderError(f"{service} did not return {FORM}: {printable(str(error))}") from None
    return {"where": service, "verdict": response.verdict, "reason": printable(response.reason)}
