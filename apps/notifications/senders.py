"""One attempt to deliver one message, by the kind of its target. No database access."""

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
from apps.notifications.events import summarize_event
from apps.notifications.http_post import TIMEOUT_S, Answer, post
from apps.notifications.models import NotificationTarget, OutboxMessage

Kind = NotificationTarget.Kind
GONE = 410
# Statuses that concern the endpoint, not this message.
OVERLOADED = {429, 502, 503, 504}
SHOWN_CHARACTERS = 200
# Keys of a payload with the path of their page, most specific first.
PAGES = (("rollout", "rollouts"), ("experiment", "experiments"), ("model", "models"))
JSON_HEADERS = {"Content-Type": "application/json", "User-Agent": "Interlock"}


@dataclass(frozen=True)
class Outcome:
    """The outcome of an attempt; an empty `error` means delivered."""

    error: str = ""
    # The endpoint is unreachable or overloaded: other messages would fail as well.
    is_away: bool = False
    # The endpoint answered 410 Gone.
    is_gone: bool = False
    retry_after_s: int = 0


def send(message: OutboxMessage, now: datetime, policy: EgressPolicy) -> Outcome:
    """Deliver `message` to its target once, if `policy` allows it.

    Expected failures are returned as an outcome.
    """
    try:
        match message.target.kind:
            case Kind.EMAIL:
                return _send_email(message)
            case Kind.SLACK:
                return _judge(_post(message, JSON_HEADERS, build_slack_body(message), policy))
            case _:
                return _send_webhook(message, now, policy)
    except Unavailable as error:
        return Outcome(error=error.message, is_away=True)


def build_page_url(data: dict[str, Any]) -> str:
    """Return the URL of the page about an event; empty without INTERLOCK_PUBLIC_URL."""
    if not settings.PUBLIC_URL:
        return ""
    for key, folder in PAGES:
        if name := data.get(key):
            return f"{settings.PUBLIC_URL}/{folder}/{quote(str(name), safe='')}/"
    return f"{settings.PUBLIC_URL}/notifications/"


def build_webhook_body(message: OutboxMessage) -> bytes:
    """Return `{"type", "timestamp", "data"}`; the bytes are the same in each attempt."""
    data = dict(message.payload)
    if page := build_page_url(data):
        data.setdefault("url", page)
    at = message.created_at.astimezone(UTC).isoformat().replace("+00:00", "Z")
    body = {"type": message.event, "timestamp": at, "data": data}
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()


def build_slack_body(message: OutboxMessage) -> bytes:
    """Return `{"text"}`: the summary with Slack markup escaped, and a link."""
    text = summarize_event(message.event, message.payload)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    if page := build_page_url(message.payload):
        text += f" <{page}|Open>"
    return json.dumps({"text": text}, ensure_ascii=False).encode()


def _send_webhook(message: OutboxMessage, now: datetime, policy: EgressPolicy) -> Outcome:
    target, body = message.target, build_webhook_body(message)
    secrets = [target.secret]
    if target.previous_secret_until is not None and target.previous_secret_until > now:
        secrets.append(target.previous_secret)
    signed = signing.build_headers(secrets, str(message.pk), int(now.timestamp()), body)
    return _judge(_post(message, {**JSON_HEADERS, **signed}, body, policy))


def _post(
    message: OutboxMessage, headers: Mapping[str, str], body: bytes, policy: EgressPolicy
) -> Answer:
    return post(message.target.address, headers, body, policy=policy)


def _judge(answer: Answer) -> Outcome:
    if 200 <= answer.status < 300:
        return Outcome()
    excerpt = " ".join(answer.text[:SHOWN_CHARACTERS].split())
    error = f"answered {answer.status}" + (f": {excerpt}" if excerpt else "")
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
    summary = summarize_event(message.event, message.payload)
    page = build_page_url(message.payload)
    mail = EmailMessage(
        # A subject is one line of bounded length.
        subject=f"[Interlock] {' '.join(summary.split())}"[:200],
        body=f"{summary}\n\n{page}\n" if page else f"{summary}\n",
        to=[message.target.address],
        # The same in each attempt, so that mail programs can drop duplicates.
        headers={"Message-ID": f"<{message.pk}@interlock>"},
        connection=EmailBackend(**settings.EMAIL_SERVER, timeout=int(TIMEOUT_S)),
    )
    try:
        mail.send()
    except (OSError, SMTPException) as error:
        # A refused recipient (550) also counts as away: only this target is affected.
        raise Unavailable(f"the mail server: {error or type(error).__name__}") from error
    return Outcome()
