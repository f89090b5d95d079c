from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from embedded.ports import USUAL_PORTS
from embedded.stack import PART_NAMES, Stack, describe
from embedded.state import ROOT, StateDir
from embedded.up import summary


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    state = StateDir(tmp_path)
    state.open()
    whole = describe(state, dict(USUAL_PORTS), state.secrets({}), {"INTERLOCK_LOG_LEVEL": "DEBUG"})
    return replace(whole, parts=PART_NAMES)


@pytest.fixture
def redis_alone(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run `up --only redis` in another process; yield when it is ready."""
    command = [sys.executable, "-m", "embedded", "up", "--only", "redis", "--free-ports", "--quiet"]
    with subprocess.Popen(
        [*command, "--state-dir", str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        while "Ctrl-C" not in process.stderr.readline():
            assert process.poll() is None
        yield process
        process.kill()


def test_the_summary_lists_all_addresses(stack: Stack) -> None:
    text = summary(stack, "the-password", took_s=19.04)

    assert "Ready in 19.0 s" in text
    assert "http://127.0.0.1:8000" in text
    assert "http://127.0.0.1:8080/v2/models/<model>/infer" in text
    assert "admin" in text
    assert "the-password" in text


def test_the_summary_does_not_repeat_the_password(stack: Stack) -> None:
    assert stack.admin_password not in summary(stack, None, took_s=1)


def test_interlocks_processes_have_the_users_settings(stack: Stack) -> None:
    assert stack.env["INTERLOCK_LOG_LEVEL"] == "DEBUG"
    assert stack.env["INTERLOCK_DEBUG"] == "0"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_it_in_order(
    redis_alone: subprocess.Popen[str], number: signal.Signals
) -> None:
    redis_alone.send_signal(number)

    _, rest = redis_alone.communicate(timeout=10)

    assert redis_alone.returncode == 0
    assert "stopped in" in rest
