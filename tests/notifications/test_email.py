"""E-mail over a real SMTP conversation."""

from __future__ import annotations

import email
import email.policy
from collections.abc import Iterator
from typing import Any

import pytest

from apps.notifications.delivery import deliver_due
from tests.notifications.receivers import Mailbox, mail_server
from tests.notifications.rows import make_target, reread, tell

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def mailbox(settings: Any) -> Iterator[Mailbox]:
    with mail_server() as box:
        settings.EMAIL_SERVER = {"host": "127.0.0.1", "port": box.port}
        settings.DEFAULT_FROM_EMAIL = "interlock@example.org"
        settings.PUBLIC_URL = "https://interlock.example"
        yield box


def test_a_mail_says_it_in_its_subject_and_links_to_the_page(mailbox: Mailbox) -> None:
    make_target("ada@example.org", kind="email")
    message = tell("rollout.held", target="digits:3", rollout="r-1", reason="no\ndata → held")
    deliver_due()

    mail = email.message_from_string(mailbox.mails[0], policy=email.policy.default)
    # Where a long header was folded, its reader keeps the space.
    assert mail["Subject"].strip() == "[Interlock] digits:3: rollout held (no data → held)"
    assert (mail["From"], mail["To"]) == ("interlock@example.org", "ada@example.org")
    assert mail["Message-ID"] == f"<{message.pk}@interlock>"
    assert "https://interlock.example/rollouts/r-1/" in mail.get_content()
    assert reread(message).state == "delivered"


def test_a_refused_recipient_is_told_and_tried_again(mailbox: Mailbox) -> None:
    mailbox.recipient_answer = b"550 no such user\r\n"
    make_target("ada@example.org", kind="email")
    message = tell()
    deliver_due()

    assert reread(message).state == "retrying"
    assert "no such user" in reread(message).last_error


def test_a_mail_server_that_is_taken_away_is_told(mailbox: Mailbox, settings: Any) -> None:
    make_target("ada@example.org", kind="email")
    message = tell()
    settings.EMAIL_SERVER = {}
    deliver_due()

    assert "INTERLOCK_EMAIL_URL" in reread(message).last_error
