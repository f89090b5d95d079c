"""Fixtures: a fake MLflow registry with temporary artifacts, and the broker of the tests."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from django.conf import settings as configured
from kombu import pools

from apps.models import aliases, artifacts, registration, registry, sources
from apps.models.registry_events import DEBOUNCE_KEY
from controlplane.celery import app
from tests.models.registries import WEBHOOK_SECRET, Mlflow, client_of
from tests.models.test_artifacts import save

# Inspection results of the registry's default file.
INSPECTED: dict[bytes, dict[str, Any]] = {}


@pytest.fixture
def mlflow(tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Mlflow:
    """A registry with versions 1 and 2 of digits; version 2 is the candidate."""
    settings.ARTIFACT_DIR = tmp_path / "artifacts"
    settings.MLFLOW_TRACKING_URI = "http://mlflow"
    server = Mlflow(save(tmp_path / "m.onnx", ["N", 4]).read_bytes())
    for module in (aliases, registration, registry, sources):
        monkeypatch.setattr(module, "connect", lambda: client_of(server))
    monkeypatch.setattr(artifacts, "_inspected", inspected_once(server.files["model.onnx"]))
    return server


def inspected_once(usual: bytes) -> Callable[[Path], dict[str, Any]]:
    """Inspect the default file once: loading ONNX Runtime in a process takes 1.5 s."""
    inspect = artifacts._inspected

    def inspected(path: Path) -> dict[str, Any]:
        content = path.read_bytes()
        if content != usual:
            return inspect(path)
        if content not in INSPECTED:
            INSPECTED[content] = inspect(path)
        return copy.deepcopy(INSPECTED[content])

    return inspected


@pytest.fixture
def queue(settings: Any, servers: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    """The broker of the tests, without a queued sync."""
    settings.MLFLOW_WEBHOOK_SECRET = WEBHOOK_SECRET
    # The app read its settings before the servers of the tests were started.
    monkeypatch.setitem(app.conf, "broker_url", configured.REDIS_URL)
    monkeypatch.setattr(app, "_pool", None)
    monkeypatch.setattr(app.amqp, "_producer_pool", None)
    with redis.Redis.from_url(configured.REDIS_URL) as client:
        client.delete(DEBOUNCE_KEY, "celery")
        yield client
        client.delete(DEBOUNCE_KEY, "celery")
    pools.reset()
