"""MLflow's webhooks are hints: verified and debounced; a lost one is harmless."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import pytest
import redis
from django.test import Client

from apps.models.registry_events import DEBOUNCE_KEY, hint_sync
from tests.models.registries import WEBHOOK_SECRET as SECRET

pytestmark = pytest.mark.django_db

PATH = "/api/v1/registry-webhooks/mlflow"


def event(entity: str = "model_version_alias") -> bytes:
    data = {"name": "digits", "alias": "candidate", "version": "2"}
    return json.dumps({"entity": entity, "action": "created", "data": data}).encode()


def send(body: bytes, secret: str = SECRET, age_s: int = 0, **changes: str) -> Any:
    """Send a webhook as MLflow does: v1, and base64 of HMAC-SHA256 over id.timestamp.body."""
    delivery, timestamp = "6fd1", str(int(time.time()) - age_s)
    signed = f"{delivery}.{timestamp}.".encode() + body
    digest = base64.b64encode(hmac.new(secret.encode(), signed, hashlib.sha256).digest()).decode()
    headers = {
        "X-MLflow-Signature": f"v1,{digest}",
        "X-MLflow-Delivery-Id": delivery,
        "X-MLflow-Timestamp": timestamp,
    }
    return Client().post(PATH, body, content_type="application/json", headers=headers | changes)


def test_many_events_within_a_second_queue_one_sync(queue: redis.Redis) -> None:
    answers = [send(event()) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [202] * 5
    assert [answer.json()["queued"] for answer in answers] == [True, False, False, False, False]
    assert queue.llen("celery") == 1
    message = json.loads(queue.lindex("celery", 0))
    assert message["headers"]["task"] == "models.sync_registry"


def test_an_event_after_that_second_queues_another(queue: redis.Redis) -> None:
    send(event())
    assert 0 < queue.pttl(DEBOUNCE_KEY) <= 1_000
    queue.delete(DEBOUNCE_KEY)
    assert send(event()).json()["queued"]


def test_an_event_of_prompts_queues_nothing(queue: redis.Redis) -> None:
    answer = send(event("prompt_version"))
    assert (answer.status_code, answer.json()) == (202, {"queued": False})
    assert queue.llen("celery") == 0


@pytest.mark.parametrize(
    "refused",
    [
        {"secret": "guessed"},
        {"age_s": 301},
        {"age_s": -301},
        {"X-MLflow-Signature": ""},
        {"X-MLflow-Delivery-Id": "another"},
    ],
)
def test_an_invalid_or_old_signature_is_refused(
    queue: redis.Redis, refused: dict[str, Any]
) -> None:
    answer = send(event(), **refused)
    assert answer.status_code == 403
    assert "X-MLflow-" in answer.json()["error"]["message"]
    assert queue.llen("celery") == 0


@pytest.mark.parametrize("body", [b"[", b"[]", b"{}", b'{"entity": 1}'])
def test_a_body_that_is_not_an_event_is_refused(queue: redis.Redis, body: bytes) -> None:
    assert send(body).status_code == 400


def test_without_a_secret_there_are_no_webhooks(queue: redis.Redis, settings: Any) -> None:
    settings.MLFLOW_WEBHOOK_SECRET = ""
    answer = send(event(), secret="")
    assert answer.status_code == 404
    assert "INTERLOCK_MLFLOW_WEBHOOK_SECRET" in answer.json()["error"]["message"]


def test_without_redis_the_response_is_503(queue: redis.Redis, settings: Any) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    assert send(event()).status_code == 503
    hint_sync()
