"""The REST API of notifications: roles, responses, secrets shown once, precise errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from apps.lib.clock import database_now
from apps.lib.egress import AllowList
from apps.models.models import AuditEntry, ModelRole
from apps.notifications.models import NotificationTarget, OutboxMessage
from apps.notifications.outbox import settle_failed
from controlplane.models import ApiToken
from tests.notifications.rows import enqueue_event, make_model, make_target, reread

pytestmark = pytest.mark.django_db

API = "/api/v1/"
HOOK = {"name": "ops", "kind": "webhook", "address": "https://hooks.example/T0/secret"}


def caller(role: str | None, model: str | None = None) -> Client:
    user = User.objects.create_user(f"user-{role}-{model}")
    if role:
        ModelRole.objects.create(user=user, role=role, model=make_model(model) if model else None)
    _, secret = ApiToken.issue(user_id=user.pk, name="ci")
    return Client(headers={"Authorization": f"Bearer {secret}"})


@pytest.fixture
def admin() -> Client:
    return caller("admin")


def send(client: Client, path: str, body: Any = None, method: str = "post") -> Any:
    act = getattr(client, method)
    return act(API + path, body or {}, content_type="application/json")


def message_of(answer: Any) -> str:
    return str(answer.json()["error"]["message"])


def test_the_secret_of_a_webhook_is_shown_once(admin: Client) -> None:
    created = send(admin, "notification-targets/", HOOK)
    secret = created.json()["secret"]

    assert (created.status_code, created.headers["Cache-Control"]) == (201, "no-store")
    assert secret.startswith("whsec_")
    assert created.json()["events"] == []
    later = [
        admin.get(API + "notification-targets/").content.decode(),
        admin.get(API + "notification-targets/ops/").content.decode(),
        json.dumps(list(AuditEntry.objects.values("action", "before", "after"))),
    ]
    assert all(secret not in text for text in later)
    assert "T0" not in later[2]


def test_a_target_is_changed_rotated_and_deactivated(admin: Client) -> None:
    secret = send(admin, "notification-targets/", HOOK).json()["secret"]
    make_model()
    change = {"events": ["rollout.failed"], "model": "digits"}
    changed = send(admin, "notification-targets/ops/", change, "patch").json()
    rotated = send(admin, "notification-targets/ops/rotate/").json()
    off = send(admin, "notification-targets/ops/deactivate/").json()
    refused = send(admin, "notification-targets/ops/test/")
    on = send(admin, "notification-targets/ops/activate/").json()

    assert (changed["events"], changed["model"]) == (["rollout.failed"], "digits")
    assert rotated["secret"].startswith("whsec_")
    assert rotated["secret"] != secret
    assert (off["is_active"], off["inactive_reason"]) == (False, "by user-admin-None")
    assert (refused.status_code, on["is_active"]) == (409, True)
    actions = list(AuditEntry.objects.order_by("id").values_list("action", flat=True))
    expected = ["created", "changed", "secret_rotated", "deactivated", "activated"]
    assert actions == [f"notification_target.{name}" for name in expected]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"address": "ftp://x.example/"}, 400, "starts with https:// or http://"),
        ({"address": "https:///path"}, 400, "has no host"),
        ({"address": "https://a:b@x.example/"}, 400, "no user or password"),
        ({"address": "https://x.example:99999/"}, 400, "is not a URL"),
        ({"address": "https://x.example/a b"}, 400, "no spaces"),
        ({"address": "http://169.254.169.254/latest"}, 400, "nothing is sent to 169.254.169.254"),
        ({"address": "http://[::ffff:169.254.169.254]/"}, 400, "nothing is sent to"),
        ({"address": ""}, 400, "address"),
        ({"name": "no spaces"}, 400, "name"),
        ({"kind": "pager"}, 400, "kind"),
        ({"kind": "email", "address": "nobody"}, 400, "'nobody' is not an e-mail address"),
        ({"kind": "email", "address": "a@b.example"}, 400, "INTERLOCK_EMAIL_URL"),
        ({"events": ["rollout.exploded"]}, 400, "rollout.exploded"),
        ({"events": ["rollout.failed", "rollout.failed"]}, 400, "twice"),
        ({"model": "unknown"}, 400, "model"),
        ({"name": "taken"}, 409, "'taken' exists already"),
    ],
)
def test_an_invalid_field_is_named_and_nothing_is_created(
    admin: Client, body: dict[str, Any], status: int, message: str
) -> None:
    make_target("https://x.example/", name="taken")
    answer = send(admin, "notification-targets/", {**HOOK, **body})

    assert (answer.status_code, NotificationTarget.objects.count()) == (status, 1)
    assert message in message_of(answer)


@pytest.mark.parametrize("host", ["10.0.0.7", "0x0a000007", "[::ffff:10.0.0.7]", "100.64.0.1"])
def test_private_addresses_are_refused_unless_they_are_listed(
    admin: Client, settings: Any, host: str
) -> None:
    settings.WEBHOOK_ALLOWED = AllowList()
    body = {**HOOK, "address": f"http://{host}/"}
    answer = send(admin, "notification-targets/", body)

    assert answer.status_code == 400
    assert "INTERLOCK_WEBHOOK_ALLOWED" in message_of(answer)

    settings.WEBHOOK_ALLOWED = AllowList.parse(["10.0.0.0/24", "100.64.0.0/10"])
    assert send(admin, "notification-targets/", body).status_code == 201


def test_email_can_be_added_where_a_mail_server_is_configured(admin: Client, settings: Any) -> None:
    settings.EMAIL_SERVER = {"host": "127.0.0.1", "port": 25}
    body = {"name": "ada", "kind": "email", "address": "ada@example.org"}
    created = send(admin, "notification-targets/", body)

    assert (created.status_code, created.json()["secret"]) == (201, "")
    assert send(admin, "notification-targets/ada/rotate/").status_code == 409


@pytest.mark.parametrize("path", ["", "ops/test/", "ops/rotate/", "ops/deactivate/"])
def test_only_an_administrator_changes_anything(path: str) -> None:
    make_target(HOOK["address"])
    answer = send(caller("operator"), f"notification-targets/{path}", {**HOOK, "name": "x"})

    assert answer.status_code == 403
    assert "role admin" in message_of(answer)


def test_an_administrator_of_a_model_creates_targets_of_that_model_only() -> None:
    own, other = caller("admin", "digits"), make_model("other").name

    assert send(own, "notification-targets/", {**HOOK, "model": "digits"}).status_code == 201
    assert send(own, "notification-targets/", {**HOOK, "name": "b"}).status_code == 403
    moved = send(own, "notification-targets/ops/", {"model": other}, "patch")
    assert moved.status_code == 403
    assert send(own, "notification-targets/ops/", {"model": None}, "patch").status_code == 403


def test_others_see_neither_the_path_of_an_address_nor_an_error_response() -> None:
    make_target(HOOK["address"])
    message = enqueue_event()
    OutboxMessage.objects.update(attempts=1)
    settle_failed(reread(message), "answered 500: internal detail", database_now())
    viewer = caller(None)

    shown = viewer.get(API + "notification-targets/").json()["results"][0]
    delivery = viewer.get(API + f"notification-deliveries/{message.pk}/").json()
    assert shown["address"] == "https://hooks.example/…"
    assert (delivery["state"], "internal" in delivery["last_error"]) == ("retrying", False)


def test_deliveries_are_filtered_by_state_and_given_up_ones_retried(admin: Client) -> None:
    make_target(HOOK["address"])
    message = enqueue_event()
    OutboxMessage.objects.update(gave_up_at=database_now(), attempts=9, last_error="gone")
    enqueue_event()

    listed = admin.get(API + "notification-deliveries/", {"state": "gave_up", "target": "ops"})
    assert [row["id"] for row in listed.json()["results"]] == [str(message.pk)]
    again = send(admin, f"notification-deliveries/{message.pk}/retry/").json()
    assert (again["state"], again["attempts"]) == ("retrying", 0)
    wrong = admin.get(API + "notification-deliveries/", {"state": "lost"})
    assert (wrong.status_code, "'lost'" in message_of(wrong)) == (400, True)


def test_a_delivered_message_is_not_sent_again(admin: Client) -> None:
    make_target(HOOK["address"])
    message = enqueue_event()
    OutboxMessage.objects.update(delivered_at=database_now())

    assert send(admin, f"notification-deliveries/{message.pk}/retry/").status_code == 409
