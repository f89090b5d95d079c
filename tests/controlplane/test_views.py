"""The page of API tokens: a secret is shown once, and users see only their own tokens."""

from __future__ import annotations

import re

import pytest
from django.contrib.auth.models import User
from django.test import Client

from apps.models.models import AuditEntry
from controlplane.models import ApiToken, digest_token
from tests.confirming import post_yes

pytestmark = pytest.mark.django_db


@pytest.fixture
def anna(client: Client) -> Client:
    client.force_login(User.objects.create_user("anna"))
    return client


def test_a_secret_is_shown_once_and_stored_as_a_digest(anna: Client) -> None:
    response = anna.post("/tokens/", {"name": "ci"})

    secret = re.search(r"ilk_[\w-]+", response.content.decode())
    assert response.status_code == 201
    assert secret is not None
    assert ApiToken.objects.get().digest == digest_token(secret[0])
    assert secret[0] not in anna.get("/tokens/").content.decode()
    assert "no-store" in response.headers["cache-control"]


def test_a_token_needs_a_name(anna: Client) -> None:
    assert anna.post("/tokens/", {"name": " "}).status_code == 400
    assert not ApiToken.objects.exists()


def test_a_revoked_token_is_deleted_and_audited(anna: Client) -> None:
    anna.post("/tokens/", {"name": "ci"})

    post_yes(anna, f"/tokens/{ApiToken.objects.get().pk}/revoke/")

    assert not ApiToken.objects.exists()
    actions = AuditEntry.objects.order_by("id").values_list("action", flat=True)
    assert list(actions) == ["token.made", "token.revoked"]


def test_another_users_token_is_neither_shown_nor_revoked(anna: Client) -> None:
    other, _ = ApiToken.issue(user_id=User.objects.create_user("otto").pk, name="ottos-own")

    assert "ottos-own" not in anna.get("/tokens/").content.decode()
    assert anna.post(f"/tokens/{other.pk}/revoke/").status_code == 404
    assert ApiToken.objects.filter(pk=other.pk).exists()


def test_the_admin_uses_interlocks_icon(admin_client):
    page = admin_client.get("/admin/").content.decode()
    assert re.search(r"interlock/icon\.[0-9a-f]{12}\.svg", page)
    assert "Refused outcomess" not in page
