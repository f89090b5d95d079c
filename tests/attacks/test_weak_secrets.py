"""A weak secret stops every program of the control plane, with advice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VARIABLES = (
    "INTERLOCK_SECRET_KEY",
    "INTERLOCK_INSTANCE_TOKEN",
    "INTERLOCK_MLFLOW_WEBHOOK_SECRET",
    "INTERLOCK_WEBHOOK_SECRET",
)


def start(argv: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "controlplane.settings", **variables}
    command = [sys.executable, *argv]
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("value", ["c2VjcmV0", "changeme" * 5])
def test_a_weak_secret_stops_the_start(variable: str, value: str) -> None:
    done = start(["manage.py", "check"], **{variable: value})
    assert done.returncode != 0
    assert variable in done.stderr.splitlines()[-1]
    assert value not in done.stderr


def test_a_web_server_does_not_start_either() -> None:
    argv = ["-c", "import controlplane.wsgi"]
    done = start(argv, INTERLOCK_SECRET_KEY="secret")
    assert done.returncode != 0
    assert "secrets.token_urlsafe(48)" in done.stderr
