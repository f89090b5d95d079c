"""Changing a password, and resetting it by mail without revealing which names exist."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from apps.models.models import AuditEntry
from tests.notifications.receivers import Mailbox, mail_server

pytestmark = pytest.mark.django_db

OLD, NEW = "the old password 1", "another one, better"


@pytest.fixture
def anna() -> User:
    return User.objects.create_user("anna", "anna@example.org", OLD)


def mails_of(box: Mailbox, count: int) -> list[str]:
    ends_at = time.monotonic() + 10
    while len(box.mails) < count:
        assert time.monotonic() < ends_at
        time.sleep(0.02)
    return box.mails


def settings_of(box: Mailbox) -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": box.port}


def test_a_change_needs_the_old_password_and_ends_other_sessions(anna: User) -> None:
    here, elsewhere = Client(), Client()
    for client in (here, elsewhere):
        client.force_login(anna)
    body = {"new_password1": NEW, "new_password2": NEW}
    assert here.post("/password/", {**body, "old_password": "wrong"}).status_code == 200
    assert here.post("/password/", {**body, "old_password": OLD}).status_code == 302
    assert here.get("/tokens/").status_code == 200
    assert elsewhere.get("/tokens/").status_code == 302
    assert AuditEntry.objects.get(action="password.changed").target == "anna"


@pytest.mark.parametrize("weak", ["short", "password1234", "123456789012345", "anna@example.org"])
def test_a_weak_password_is_refused(anna: User, weak: str) -> None:
    client = Client()
    client.force_login(anna)
    body = {"old_password": OLD, "new_password1": weak, "new_password2": weak}
    assert client.post("/password/", body).status_code == 200
    assert User.objects.get().check_password(OLD)


def test_a_mail_resets_it_once(anna: User, settings: Any) -> None:
    settings.PUBLIC_URL = "https://interlock.example"
    with mail_server() as box:
        settings.EMAIL_SERVER = settings_of(box)
        assert Client().post("/password/reset/", {"email": anna.email}).status_code == 302
        (mail,) = mails_of(box, 1)
        # A second mail within ten minutes is not sent; the response is the same.
        assert Client().post("/password/reset/", {"email": anna.email}).status_code == 302
    link = re.search(r"https://interlock\.example(/password/reset/\S+)", mail)
    assert link
    client = Client()
    form = client.get(link[1], follow=True)
    body = {"new_password1": NEW, "new_password2": NEW}
    assert client.post(form.redirect_chain[-1][0], body).status_code == 302
    assert User.objects.get().check_password(NEW)
    assert "used already" in Client().get(link[1], follow=True).content.decode()
    assert len(box.mails) == 1
    logged = AuditEntry.objects.filter(action__startswith="password.").order_by("pk")
    assert [entry.action for entry in logged] == ["password.reset_asked", "password.reset"]


def test_an_unknown_address_gets_the_same_response(anna: User, settings: Any) -> None:
    with mail_server() as box:
        settings.EMAIL_SERVER = settings_of(box)
        known = Client().post("/password/reset/", {"email": anna.email})
        unknown = Client().post("/password/reset/", {"email": "nobody@example.org"})
        mails_of(box, 1)
    assert (known.status_code, known.url) == (unknown.status_code, unknown.url)


def test_without_a_mail_server_the_page_shows_the_command(anna: User) -> None:
    response = Client().get("/password/reset/")
    assert "changepassword" in response.content.decode()
    assert Client().post("/password/reset/", {"email": anna.email}).status_code == 409
