"""Pages of notifications: what is configured, what became of it, what may be done and by whom."""

from __future__ import annotations

import re

import pytest
from django.contrib.auth.models import User
from django.test import Client

from apps.lib.clock import database_now
from apps.models.models import ModelRole, Role
from apps.notifications.models import NotificationTarget, OutboxMessage
from tests.confirming import post_yes
from tests.notifications.rows import make_model, make_target, tell

pytestmark = pytest.mark.django_db

ADDRESS = "https://hooks.example/T0/secret"
FORM = {"name": "ops", "kind": "webhook", "address": ADDRESS}
LIST, NEW, OPS = "/notifications/", "/notifications/new/", "/notifications/targets/ops/"


@pytest.fixture
def admin(client: Client) -> Client:
    user = User.objects.create_user("ada")
    ModelRole.objects.create(user=user, role=Role.ADMIN)
    client.force_login(user)
    return client


@pytest.fixture
def viewer() -> Client:
    client = Client()
    client.force_login(User.objects.create_user("vera"))
    return client


def text_of(client: Client, path: str) -> str:
    return client.get(path).content.decode()


def test_the_empty_page_says_what_could_be_there(admin: Client, viewer: Client) -> None:
    assert "Nobody is told of anything yet" in text_of(admin, LIST)
    assert "Nothing was told yet" in text_of(admin, LIST)
    assert 'href="/notifications/new/"' not in text_of(viewer, LIST)


def test_a_webhooks_secret_stands_on_the_page_that_made_it_and_on_no_other(admin: Client) -> None:
    made = admin.post(NEW, {**FORM, "events": ["leak.detected"]})
    secret = NotificationTarget.objects.get().secret

    assert (made.status_code, "no-store" in made.headers["Cache-Control"]) == (201, True)
    assert secret in made.content.decode()
    assert secret not in text_of(admin, OPS) + text_of(admin, LIST)
    rotated = post_yes(admin, OPS + "rotate/").content.decode()
    assert NotificationTarget.objects.get().secret in rotated
    assert secret not in rotated


def test_what_is_wrong_is_said_beside_what_was_typed(admin: Client) -> None:
    refused = admin.post(NEW, {**FORM, "address": "ftp://x"})

    assert refused.status_code == 400
    assert "starts with https:// or http://" in refused.content.decode()
    assert "ftp://x" in refused.content.decode()


def test_a_target_is_changed_tested_deactivated_and_activated(admin: Client) -> None:
    make_target(ADDRESS)
    admin.post(OPS, {"address": "https://b.example/", "model": make_model().pk})
    admin.post(OPS + "test/")
    row = NotificationTarget.objects.get()
    assert (row.address, row.model and row.model.name) == ("https://b.example/", "digits")
    assert OutboxMessage.objects.get().event == "test"

    post_yes(admin, OPS + "deactivate/")
    assert "Nothing is sent: by ada." in text_of(admin, OPS)
    assert OutboxMessage.objects.get().state == "gave_up"
    admin.post(OPS + "activate/")
    assert NotificationTarget.objects.get().is_active


def test_a_failed_delivery_shows_why_and_can_be_tried_now(admin: Client) -> None:
    make_target(ADDRESS)
    message = tell()
    OutboxMessage.objects.update(gave_up_at=database_now(), last_error="answered 500: broken")
    page = text_of(admin, LIST)
    assert "1 message of the last 24 hours was given up" in page
    assert "answered 500: broken" in page

    admin.post(f"/notifications/deliveries/{message.pk}/retry/")
    assert OutboxMessage.objects.get().gave_up_at is None


def test_others_look_and_do_not_touch(viewer: Client) -> None:
    make_target(ADDRESS)
    message = tell()
    OutboxMessage.objects.update(last_error="internal detail", attempts=1)

    assert "T0/secret" not in text_of(viewer, LIST) + text_of(viewer, OPS)
    assert "internal detail" not in text_of(viewer, LIST) + text_of(viewer, OPS)
    acts = [OPS + act for act in ("", "test/", "rotate/", "deactivate/", "activate/")]
    acts += [NEW, f"/notifications/deliveries/{message.pk}/retry/"]
    assert {viewer.post(path, FORM).status_code for path in acts} == {403}


@pytest.mark.parametrize("path", [LIST, OPS + "live/"])
def test_a_live_part_is_sent_again_only_when_it_changed(admin: Client, path: str) -> None:
    make_target(ADDRESS)
    found = re.search(r"stamp=(\w+)", text_of(admin, path))
    assert found
    asked = {"stamp": found[1]}
    again = admin.get(path, asked, headers={"hx-request": "true"})
    tell()
    changed = admin.get(path, asked, headers={"hx-request": "true"})

    assert (again.status_code, changed.status_code) == (204, 200)


def test_an_unknown_target_is_not_found(admin: Client) -> None:
    assert admin.get("/notifications/targets/nobody/").status_code == 404
