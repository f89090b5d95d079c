"""Environment variables become settings; errors name the variable."""

from __future__ import annotations

import base64
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from controlplane import env
from controlplane.env import SettingError

WEBHOOK_KEY = "whsec_" + base64.b64encode(bytes(range(24))).decode()
CHOICES = ("auto", "python")


def test_a_choice_is_one_of_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    assert env.choice("X", "auto", CHOICES) == "auto"
    monkeypatch.setenv("X", "python")
    assert env.choice("X", "auto", CHOICES) == "python"
    monkeypatch.setenv("X", "pyhton")
    with pytest.raises(SettingError, match="X is 'pyhton'; expected one of auto, python"):
        env.choice("X", "auto", CHOICES)


@pytest.mark.parametrize("value", ["", "http://metrics:9090", "https://me:secret@metrics/prom"])
def test_a_service_url_is_not_changed(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X", value)
    assert env.service_url("X") == value


@pytest.mark.parametrize("value", ["metrics:9090", "ftp://x", "http://", "http://[", "9090"])
def test_an_invalid_service_url_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X", value)
    with pytest.raises(SettingError, match="X is not a valid http: or https: URL"):
        env.service_url("X")


def test_a_webhook_secret_is_base64_and_stays_out_of_the_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("X", WEBHOOK_KEY)
    assert env.webhook_secret("X") == WEBHOOK_KEY
    monkeypatch.setenv("X", "not base64!")
    with pytest.raises(SettingError, match=r"^X is not whsec_ followed by a key in base64$"):
        env.webhook_secret("X")


def test_the_services_of_checks_come_from_the_environment() -> None:
    variables = {
        "INTERLOCK_PROMETHEUS_URL": "http://metrics:9090",
        "INTERLOCK_WEBHOOK_SECRET": WEBHOOK_KEY,
    }
    program = "from tests import settings as s; print(s.PROMETHEUS_URL, s.WEBHOOK_SECRET)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == list(variables.values())


def test_the_limits_of_triton_and_the_inspection_come_from_the_environment() -> None:
    variables = {
        "INTERLOCK_TRITON_BACKEND": "python",
        "INTERLOCK_TRITON_INSTANCES": "4",
        "INTERLOCK_INSPECT_MEMORY_BYTES_MAX": "2000000000",
        "INTERLOCK_INSPECT_TIMEOUT_S": "33",
    }
    program = (
        "from tests import settings as s; print(s.TRITON_BACKEND, s.TRITON_INSTANCES, "
        "s.INSPECT_MEMORY_BYTES_MAX, s.INSPECT_TIMEOUT_S)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **variables},
        capture_output=True,
        check=True,
    )
    assert done.stdout.split() == [b"python", b"4", b"2000000000", b"33"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "is not set"),
        ("short", "has 5 characters; the minimum is 32"),
        ("x" * 64, "has 1 different characters"),
        ("django-insecure-abcdefghijklmnopqrstuvwxyz0123", "'insecure'"),
        ("please-Changeme-abcdefghijklmnopqrstuvwxyz", "'changeme'"),
    ],
)
def test_a_weak_secret_is_refused_with_a_command_that_makes_one(
    monkeypatch: pytest.MonkeyPatch, value: str, reason: str
) -> None:
    monkeypatch.setenv("X", value)
    with pytest.raises(SettingError, match=reason) as refused:
        env.secret("X")
    assert "secrets.token_urlsafe(48)" in str(refused.value)
    assert len(value) < 6 or value not in str(refused.value)


def test_a_strong_secret_is_accepted_and_one_may_be_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    assert env.secret("X", "") == ""
    with pytest.raises(SettingError, match="X is not set"):
        env.secret("X")
    value = secrets.token_urlsafe(48)
    monkeypatch.setenv("X", value)
    assert env.secret("X") == value


@pytest.mark.parametrize("key", [b"secret", bytes(32)])
def test_a_weak_webhook_key_is_refused(monkeypatch: pytest.MonkeyPatch, key: bytes) -> None:
    monkeypatch.setenv("X", "whsec_" + base64.b64encode(key).decode())
    with pytest.raises(SettingError, match="expected at least 24 random bytes"):
        env.webhook_secret("X")
