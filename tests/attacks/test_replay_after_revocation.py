"""A revoked token gets no stored answer: the client is authenticated first.

The attack: a deleted token repeated a request with its Idempotency-Key and got the stored body.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from apps.models.models import ModelRole
from controlplane.models import ApiToken, IdempotencyRecord

pytestmark = pytest.mark.django_db(transaction=True)

BODY = {"name": "careful", "description": "", "steps": [{"weight_bp": 500}]}


def issue(name: str) -> tuple[ApiToken, str]:
    user, _ = User.objects.get_or_create(username=name)
    ModelRole.objects.get_or_create(user=user, role="admin")
    return ApiToken.issue(user_id=user.pk, name="ci")


def ask(live_server: Any, secret: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {secret}", "Idempotency-Key": "k"}
    return httpx.post(f"{live_server.url}/api/v1/plans/", json=BODY, headers=headers)


def expire(token: ApiToken) -> None:
    ApiToken.objects.filter(pk=token.pk).update(expires_at=timezone.now() - timedelta(seconds=1))


def deactivate(token: ApiToken) -> None:
    User.objects.filter(pk=token.user_id).update(is_active=False)


def reissue(token: ApiToken) -> None:
    ApiToken.issue(user_id=token.user_id, name=token.name)


@pytest.mark.parametrize("end", [ApiToken.delete, expire, deactivate, reissue])
def test_a_deleted_token_gets_401(live_server: Any, end: Callable[[Any], Any]) -> None:
    token, secret = issue("anna")
    first = ask(live_server, secret)
    assert (first.status_code, ask(live_server, secret).json()) == (201, first.json())
    end(token)
    refused = ask(live_server, secret)
    assert refused.status_code == 401
    assert "steps" not in refused.text
    assert IdempotencyRecord.objects.count() == 1


def test_a_stored_answer_is_its_user_s(live_server: Any) -> None:
    _, anna = issue("anna")
    _, bob = issue("bob")
    assert ask(live_server, anna).status_code == 201
    assert ask(live_server, bob).status_code == 409
    # A new token of the same user repeats the same request.
    _, newer = issue("anna")
    assert ask(live_server, newer).headers["Idempotency-Replayed"] == "true"


@pytest.mark.parametrize("header", ["Bearer", "Bearer ilk_unknown", "Basic YTpi", "Bearer a b", ""])
def test_nothing_is_stored_for_unauthenticated_clients(live_server: Any, header: str) -> None:
    headers = {"Authorization": header, "Idempotency-Key": "k"}
    answer = httpx.post(f"{live_server.url}/api/v1/plans/", json=BODY, headers=headers)
    assert answer.status_code in {401, 403}
    assert not IdempotencyRecord.objects.exists()
