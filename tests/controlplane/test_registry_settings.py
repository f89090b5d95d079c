"""Environment variables of the registry reach the settings; errors name the variable."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from controlplane import env
from controlplane.env import SettingError

SHARED = "0123456789abcdefghijklmnopqrstuv"


def test_the_registrys_settings_come_from_the_environment() -> None:
    variables = {
        "MLFLOW_TRACKING_URI": "http://ann:secret@mlflow:5000/",
        "INTERLOCK_MLFLOW_WEBHOOK_SECRET": SHARED,
        "INTERLOCK_REGISTER_DIR": "/srv/models",
        "INTERLOCK_REGISTER_HOSTS": "Models.example, localhost:8443",
    }
    program = (
        "from tests import settings as s; print(s.MLFLOW_PUBLIC_URL, s.MLFLOW_WEBHOOK_SECRET, "
        "s.REGISTER_DIR, *s.REGISTER_HOSTS)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    # The public URL contains no password.
    expected = ["http://mlflow:5000", SHARED, "/srv/models", "models.example", "localhost:8443"]
    assert done.stdout.split() == expected


def test_the_public_url_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X", "https://mlflow.example/sub/")
    assert env.public_url("X", "http://mlflow:5000") == "https://mlflow.example/sub"
    monkeypatch.setenv("X", "")
    assert env.public_url("X", "databricks") == ""
    monkeypatch.setenv("X", "mlflow.example")
    with pytest.raises(SettingError, match="X is 'mlflow"):
        env.public_url("X", "")
