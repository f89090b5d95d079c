"""Webhook checks: what a service of the user's is asked, and how its answer is read.

They go only where notifications may go, by the same code: the address is one that a person typed.
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
from apps.rollouts.provider_client import CALL_S, ProviderError, printable, shown_url
from apps.rollouts.verdicts import JSON

ANSWER_BYTES_MAX = 16_384
FORM = '{"verdict": "pass|fail|inconclusive|no-data", "reason": "…"}'


class Verdicted(msgspec.Struct):
    """What the service answers; more fields are its own affair."""

    verdict: Literal["pass", "fail", "inconclusive", "no-data"]
    reason: str = ""


_decoder = msgspec.json.Decoder(Verdicted)


def problem_of_address(settings: Mapping[str, Any]) -> str:
    """Return in words why no check may call the address of these settings, or nothing."""
    try:
        check_url(str(settings.get("url", "")), policy=configured_policy())
    except Invalid as error:
        return error.message.replace("address: ", "url: ", 1).rstrip(".")
    return ""


def signed_headers(secret: str, message_id: str, at: datetime, body: bytes) -> dict[str, str]:
    """Return Standard Webhooks' headers; without a secret there is no signature among them."""
    secrets = [secret] if secret else []
    signed = build_headers(secrets, message_id, int(at.timestamp()), body)
    return {name: value for name, value in signed.items() if value}


def ask_webhook(
    url: str, body: bytes, signed: Mapping[str, str], policy: EgressPolicy
) -> dict[str, JSON]:
    """Return the observation: `where`, `verdict` and `reason`. Raises ProviderError."""
    who = f"webhook at {shown_url(url)}"
    sent = {"content-type": "application/json", **signed}
    try:
        answer = post(url, sent, body, policy=policy, timeout_s=CALL_S, bytes_max=ANSWER_BYTES_MAX)
    except Unavailable as error:
        raise ProviderError(f"{who}: {printable(error.message)}") from None
    return read_verdict(who, answer)


def read_verdict(who: str, answer: Answer) -> dict[str, JSON]:
    """Return what `answer` says. Raises ProviderError for any but the agreed form."""
    if not 200 <= answer.status < 300:
        raise ProviderError(f"{who} answers {answer.status}")
    try:
        given = _decoder.decode(answer.text)
    except msgspec.DecodeError as error:
        raise ProviderError(f"{who} does not answer {FORM}: {printable(str(error))}") from None
    return {"where": who, "verdict": given.verdict, "reason": printable(given.reason)}
