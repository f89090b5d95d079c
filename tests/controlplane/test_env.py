"""Variables become settings, and one that cannot be used is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from controlplane import env
from controlplane.env import SettingError

CHOICES = ("auto", "python")


def test_a_choice_is_one_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    assert env.choice("X", "auto", CHOICES) == "auto"
    monkeypatch.setenv("X", "python")
    assert env.choice("X", "auto", CHOICES) == "python"
    monkeypatch.setenv("X", "pyhton")
    with pytest.raises(SettingError, match="X is 'pyhton'; it takes auto, python"):
        env.choice("X", "auto", CHOICES)


@pytest.mark.parametrize("value", ["", "http://metrics:9090", "https://me:secret@metrics/prom"])
def test_a_services_address_is_taken_as_it_is(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X", value)
    assert env.service_url("X") == value


@pytest.mark.parametrize("value", ["metrics:9090", "ftp://x", "http://", "http://[", "9090"])
def test_what_is_no_address_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X", value)
    with pytest.raises(SettingError, match="X takes an http: or https: URL"):
        env.service_url("X")


def test_a_webhook_secret_is_base64_and_stays_out_of_the_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("X", "whsec_c2VjcmV0")
    assert env.webhook_secret("X") == "whsec_c2VjcmV0"
    monkeypatch.setenv("X", "not base64!")
    with pytest.raises(SettingError, match=r"^X takes whsec_ and a key in base64$"):
        env.webhook_secret("X")


def test_who_is_asked_for_checks_comes_from_the_environment() -> None:
    given = {
        "INTERLOCK_PROMETHEUS_URL": "http://metrics:9090",
        "INTERLOCK_WEBHOOK_SECRET": "whsec_c2VjcmV0",
    }
    told = "from tests import settings as s; print(s.PROMETHEUS_URL, s.WEBHOOK_SECRET)"
    done = subprocess.run(
        [sys.executable, "-c", told],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == list(given.values())


def test_what_triton_and_the_inspection_may_take_comes_from_the_environment() -> None:
    variables = {
        "INTERLOCK_TRITON_BACKEND": "python",
        "INTERLOCK_TRITON_INSTANCES": "4",
        "INTERLOCK_INSPECT_MEMORY_BYTES_MAX": "2000000000",
        "INTERLOCK_INSPECT_TIMEOUT_S": "33",
    }
    told = (
        "from tests import settings as s; print(s.TRITON_BACKEND, s.TRITON_INSTANCES, "
        "s.INSPECT_MEMORY_BYTES_MAX, s.INSPECT_TIMEOUT_S)"
    )
    done = subprocess.run(
        [sys.executable, "-c", told],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **variables},
        capture_output=True,
        check=True,
    )
    assert done.stdout.split() == [b"python", b"4", b"2000000000", b"33"]
