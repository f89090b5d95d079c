"""A registry for tests that need one, and nothing left in the artifacts of the checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apps.models import aliases, registration, registry, sources
from tests.models.registries import Mlflow, client_of
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
