"""A registry for tests that need one, and nothing left in the artifacts of the checkout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from django.conf import settings as configured
from kombu import pools

from apps.models import aliases, registration, registry, sources
from apps.models.hints import DEBOUNCE_KEY
from controlplane.celery import app
from tests.models.registries import WEBHOOK_SECRET, Mlflow, client_of
from tests.models.test_artifacts import save


@pytest.fixture
def mlflow(tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Mlflow:
    """A registry with versions 1 and 2 of digits, of which the second is the candidate."""
    settings.ARTIFACT_DIR = tmp_path / "artifacts"
    settings.MLFLOW_TRACKING_URI = "http://mlflow"
    server = Mlflow(save(tmp_path / "m.onnx", ["N", 4]).read_bytes())
    for module in (aliases, registration, registry, sources):
        monkeypatch.setattr(module, "connect", lambda: client_of(server))
    return server


@pytest.fixture
def queue(settings: Any, servers: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    """The broker of the tests, without a hint on its way."""
    settings.MLFLOW_WEBHOOK_SECRET = WEBHOOK_SECRET
    # The app has read its settings before the test's servers were there.
    monkeypatch.setitem(app.conf, "broker_url", configured.REDIS_URL)
    monkeypatch.setattr(app, "_pool", None)
    monkeypatch.setattr(app.amqp, "_producer_pool", None)
    with redis.Redis.from_url(configured.REDIS_URL) as client:
        client.delete(DEBOUNCE_KEY, "celery")
        yield client
        client.delete(DEBOUNCE_KEY, "celery")
    pools.reset()
