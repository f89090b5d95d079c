"""E-mail over a real SMTP conversation."""

from __future__ import annotations

import email
import email.policy
from collections.abc import Iterator
from typing import Any

import pytest

from apps.notifications.delivery import deliver_due
from tests.notifications.receivers import Mailbox, mail_server
from tests.notifications.rows import enqueue_event, make_target, reread

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def mailbox(settings: Any) -> Iterator[Mailbox]:
    with mail_server() as box:
        settings.EMAIL_SERVER = {"host": "127.0.0.1", "port": box.port}
        settings.DEFAULT_FROM_EMAIL = "interlock@example.org"
        settings.PUBLIC_URL = "https://interlock.example"
        yield box


def test_a_mail_has_the_summary_as_subject_and_a_link(mailbox: Mailbox) -> None:
    make_target("ada@example.org", kind="email")
    message = enqueue_event(
        "rollout.held", target="digits:3", rollout="r-1", reason="no\ndata → held"
    )
    deliver_due()

    mail = email.message_from_string(mailbox.mails[0], policy=email.policy.default)
    # Unfolding a long header keeps the space.
    assert mail["Subject"].strip() == "[Interlock] digits:3: rollout held (no data → held)"
    assert (mail["From"], mail["To"]) == ("interlock@example.org", "ada@example.org")
    assert mail["Message-ID"] == f"<{message.pk}@interlock>"
    assert "https://interlock.example/rollouts/r-1/" in mail.get_content()
    assert reread(message).state == "delivered"


def test_a_refused_recipient_is_recorded_and_retried(mailbox: Mailbox) -> None:
    mailbox.recipient_answer = b"550 no such user\r\n"
    make_target("ada@example.org", kind="email")
    message = enqueue_event()
    deliver_due()

    assert reread(message).state == "retrying"
    assert "no such user" in reread(message).last_error


def test_a_missing_mail_server_is_recorded(mailbox: Mailbox, settings: Any) -> None:
    make_target("ada@example.org", kind="email")
    message = enqueue_event()
    settings.EMAIL_SERVER = {}
    deliver_due()

    assert "INTERLOCK_EMAIL_URL" in reread(message).last_error
