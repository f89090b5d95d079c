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
