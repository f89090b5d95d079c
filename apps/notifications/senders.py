"""One attempt to deliver one message, by the kind of its target. No database here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from smtplib import SMTPException
from typing import Any
from urllib.parse import quote

from django.conf import settings
from django.core.mail import EmailMessage
from django.core.mail.backends.smtp import EmailBackend

from apps.lib.egress import EgressPolicy
from apps.lib.errors import Unavailable
from apps.notifications import signing
from apps.notifications.events import sentence
from apps.notifications.http_post import TIMEOUT_S, Answer, post
from apps.notifications.models import NotificationTarget, OutboxMessage

Kind = NotificationTarget.Kind
GONE = 410
# Answers that speak of the endpoint, and not of this message.
OVERLOADED = {429, 502, 503, 504}
SHOWN_CHARACTERS = 200
# What a payload may name, the most particular first, and under which address its page is.
PAGES = (("rollout", "rollouts"), ("experiment", "experiments"), ("model", "models"))
JSON_HEADERS = {"Content-Type": "application/json", "User-Agent": "Interlock"}


@dataclass(frozen=True)
class Outcome:
    """What became of an attempt; an empty `error` is a delivery."""

    error: str = ""
    # Nothing else that is due to this target would fare better now.
    is_away: bool = False
    # The endpoint wants nothing any more.
    is_gone: bool = False
    retry_after_s: int = 0


def send(message: OutboxMessage, now: datetime, policy: EgressPolicy) -> Outcome:
    """Deliver `message` to its target, once, where `policy` lets it.

    Anticipated failures come back as an outcome.
    """
    try:
        match message.target.kind:
            case Kind.EMAIL:
                return _send_email(message)
            case Kind.SLACK:
                return _judge(_post(message, JSON_HEADERS, slack_body(message), policy))
            case _:
                return _send_webhook(message, now, policy)
    except Unavailable as error:
        return Outcome(error=error.message, is_away=True)


def link(data: dict[str, Any]) -> str:
    """Return the page that tells more, or nothing when this control plane's address is unknown."""
    if not settings.PUBLIC_URL:
        return ""
    for key, folder in PAGES:
        if name := data.get(key):
            return f"{settings.PUBLIC_URL}/{folder}/{quote(str(name), safe='')}/"
    return f"{settings.PUBLIC_URL}/notifications/"


def webhook_body(message: OutboxMessage) -> bytes:
    """Return `{"type", "timestamp", "data"}`: the same bytes at every attempt."""
    data = dict(message.payload)
    if page := link(data):
        data.setdefault("url", page)
    at = message.created_at.astimezone(UTC).isoformat().replace("+00:00", "Z")
    body = {"type": message.event, "timestamp": at, "data": data}
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()


def slack_body(message: OutboxMessage) -> bytes:
    """Return `{"text"}` with what Slack would take for markup escaped, and a link."""
    text = sentence(message.event, message.payload)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    if page := link(message.payload):
        text += f" <{page}|Open>"
    return json.dumps({"text": text}, ensure_ascii=False).encode()


def _send_webhook(message: OutboxMessage, now: datetime, policy: EgressPolicy) -> Outcome:
    target, body = message.target, webhook_body(message)
    secrets = [target.secret]
    if target.previous_secret_until is not None and target.previous_secret_until > now:
        secrets.append(target.previous_secret)
    signed = signing.headers(secrets, str(message.pk), int(now.timestamp()), body)
    return _judge(_post(message, {**JSON_HEADERS, **signed}, body, policy))


def _post(
    message: OutboxMessage, headers: Mapping[str, str], body: bytes, policy: EgressPolicy
) -> Answer:
    return post(message.target.address, headers, body, policy=policy)


def _judge(answer: Answer) -> Outcome:
    if 200 <= answer.status < 300:
        return Outcome()
    said = " ".join(answer.text[:SHOWN_CHARACTERS].split())
    error = f"answered {answer.status}" + (f": {said}" if said else "")
    if 300 <= answer.status < 400:
        error = f"answered {answer.status}: redirects are not followed, change the address"
    return Outcome(
        error=error,
        is_away=answer.status in OVERLOADED,
        is_gone=answer.status == GONE,
        retry_after_s=answer.retry_after_s,
    )


def _send_email(message: OutboxMessage) -> Outcome:
    if not settings.EMAIL_SERVER:
        raise Unavailable("no mail server is configured (INTERLOCK_EMAIL_URL)")
    said = sentence(message.event, message.payload)
    page = link(message.payload)
    mail = EmailMessage(
        # A subject is one line of bounded length, whatever the reason holds.
        subject=f"[Interlock] {' '.join(said.split())}"[:200],
        body=f"{said}\n\n{page}\n" if page else f"{said}\n",
        to=[message.target.address],
        # The same at every attempt, so that a mail program may show a repeated one once.
        headers={"Message-ID": f"<{message.pk}@interlock>"},
        connection=EmailBackend(**settings.EMAIL_SERVER, timeout=int(TIMEOUT_S)),
    )
    try:
        mail.send()
    except (OSError, SMTPException) as error:
        # A refused recipient (550) concerns this target alone, which is all that waits for it.
        told = f"the mail server: {error or type(error).__name__}"
        raise Unavailable(told) from error
    return Outcome()
