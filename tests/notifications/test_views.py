"""Pages of notifications: targets, deliveries, actions and roles."""

from __future__ import annotations

import re

import pytest
from django.contrib.auth.models import User
from django.test import Client

from apps.lib.clock import database_now
from apps.models.models import ModelRole, Role
from apps.notifications.models import NotificationTarget, OutboxMessage
from tests.confirming import post_yes
from tests.notifications.rows import enqueue_event, make_model, make_target

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


def test_an_empty_page_explains_itself(admin: Client, viewer: Client) -> None:
    assert "No notification target yet" in text_of(admin, LIST)
    assert "No delivery yet" in text_of(admin, LIST)
    assert 'href="/notifications/new/"' not in text_of(viewer, LIST)


def test_the_secret_of_a_webhook_is_shown_on_the_page_that_created_it_only(admin: Client) -> None:
    created = admin.post(NEW, {**FORM, "events": ["leak.detected"]})
    secret = NotificationTarget.objects.get().secret

    assert (created.status_code, "no-store" in created.headers["Cache-Control"]) == (201, True)
    assert secret in created.content.decode()
    assert secret not in text_of(admin, OPS) + text_of(admin, LIST)
    rotated = post_yes(admin, OPS + "rotate/").content.decode()
    assert NotificationTarget.objects.get().secret in rotated
    assert secret not in rotated


def test_an_error_is_shown_with_the_input(admin: Client) -> None:
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
    assert "Nothing is sent. Deactivated: by ada." in text_of(admin, OPS)
    assert OutboxMessage.objects.get().state == "gave_up"
    admin.post(OPS + "activate/")
    assert NotificationTarget.objects.get().is_active


def test_a_failed_delivery_shows_the_reason_and_can_be_retried(admin: Client) -> None:
    make_target(ADDRESS)
    message = enqueue_event()
    OutboxMessage.objects.update(gave_up_at=database_now(), last_error="answered 500: broken")
    page = text_of(admin, LIST)
    assert "1 message was given up in the last 24 hours" in page
    assert "answered 500: broken" in page

    admin.post(f"/notifications/deliveries/{message.pk}/retry/")
    assert OutboxMessage.objects.get().gave_up_at is None


def test_viewers_cannot_change_anything(viewer: Client) -> None:
    make_target(ADDRESS)
    message = enqueue_event()
    OutboxMessage.objects.update(last_error="internal detail", attempts=1)

    assert "T0/secret" not in text_of(viewer, LIST) + text_of(viewer, OPS)
    assert "internal detail" not in text_of(viewer, LIST) + text_of(viewer, OPS)
    acts = [OPS + act for act in ("", "test/", "rotate/", "deactivate/", "activate/")]
    acts += [NEW, f"/notifications/deliveries/{message.pk}/retry/"]
    assert {viewer.post(path, FORM).status_code for path in acts} == {403}


@pytest.mark.parametrize("path", [LIST, OPS + "live/"])
def test_a_live_fragment_is_sent_again_only_when_it_changed(admin: Client, path: str) -> None:
    make_target(ADDRESS)
    match = re.search(r"stamp=(\w+)", text_of(admin, path))
    assert match
    query = {"stamp": match[1]}
    again = admin.get(path, query, headers={"hx-request": "true"})
    enqueue_event()
    changed = admin.get(path, query, headers={"hx-request": "true"})

    assert (again.status_code, changed.status_code) == (204, 200)


def test_an_unknown_target_is_not_found(admin: Client) -> None:
    assert admin.get("/notifications/targets/nobody/").status_code == 404
