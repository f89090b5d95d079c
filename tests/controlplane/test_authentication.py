"""Bearer tokens: which are accepted, and the reasons of refusals."""

from __future__ import annotations

from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone

from controlplane.models import ApiToken

pytestmark = pytest.mark.django_db


@pytest.fixture
def secret() -> str:
    user = User.objects.create_user("anna")
    return ApiToken.issue(user_id=user.pk, name="ci")[1]


def get(authorization: str) -> Any:
    return Client().get("/api/v1/plans/", headers={"Authorization": authorization})


def test_a_valid_token_is_accepted(secret: str) -> None:
    assert get(f"Bearer {secret}").status_code == 200


@pytest.mark.parametrize(
    ("authorization", "message"),
    [
        ("Bearer ilk_wrong", "unknown"),
        ("Bearer one two", "Authorization: Bearer TOKEN"),
        ("Bearer", "Authorization: Bearer TOKEN"),
        ("Bearer \xff", "unknown"),
    ],
)
def test_an_invalid_token_is_refused_with_a_reason(authorization: str, message: str) -> None:
    response = get(authorization)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert message in response.json()["error"]["message"]


def test_an_expired_token_is_refused(secret: str) -> None:
    ApiToken.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert "expired" in get(f"Bearer {secret}").json()["error"]["message"]


def test_a_token_of_an_inactive_user_is_refused(secret: str) -> None:
    User.objects.update(is_active=False)
    assert get(f"Bearer {secret}").status_code == 401


def test_only_the_digest_is_kept(secret: str) -> None:
    token = ApiToken.objects.get()
    assert secret not in {token.digest, token.name}
    assert len(token.digest) == 64


def test_issuing_again_replaces_an_expired_token(secret: str) -> None:
    ApiToken.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    out = StringIO()
    call_command("issue_token", "anna", "ci", stdout=out)
    assert get(f"Bearer {out.getvalue().strip()}").status_code == 200
    assert get(f"Bearer {secret}").status_code == 401


def test_a_token_needs_a_user() -> None:
    with pytest.raises(CommandError, match="Unknown user 'nobody'"):
        call_command("issue_token", "nobody", "ci")
