"""Stacks of real servers: restarts, refusals and messages."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import redis

from embedded.part import StackError
from embedded.stack import base_environment, load_stack, running
from embedded.stale_processes import ProcessRecord, read_process
from embedded.state import ROOT, StateDir

SERVERS = {"postgres", "redis"}


def command(state_dir: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "embedded", *arguments, "--state-dir", str(state_dir)],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def kill_everything(supervisor: int, state: StateDir) -> None:
    """Send SIGKILL to the supervisor and to all processes that it started."""
    recorded = [pid for pid, _ in json.loads(state.process_file.read_text())["processes"]]
    for pid in [supervisor, *recorded]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_it_serves_refuses_a_second_stack_and_stops(tmp_path: Path) -> None:
    with running(tmp_path, only=SERVERS) as stack:
        with psycopg.connect(stack.database_url) as connection:
            assert connection.execute("SELECT current_user").fetchone() == ("interlock",)
        with redis.Redis.from_url(stack.redis_url) as client:
            assert client.ping()
        second = command(tmp_path, "up", "--only", "redis")
        status = command(tmp_path, "status")

    assert second.returncode == 1
    assert f"already running in {tmp_path} (pid {stack.pid})" in second.stderr
    assert "parts postgres, redis" in status.stderr
    assert ProcessRecord(tmp_path / "processes.json").leftovers() == []
    assert load_stack(StateDir(tmp_path)) is None


def test_it_recovers_with_its_data_after_everything_was_killed(tmp_path: Path) -> None:
    with running(tmp_path, only=SERVERS) as first:
        with psycopg.connect(first.database_url, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        with redis.Redis.from_url(first.redis_url) as client:
            client.set("kept", 42)
        kill_everything(first.pid, StateDir(tmp_path))

    with running(tmp_path, only=SERVERS) as second:
        with psycopg.connect(second.database_url) as connection:
            assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
        with redis.Redis.from_url(second.redis_url) as client:
            assert client.get("kept") == b"42"
        assert second.ports == first.ports


def test_nothing_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    with running(tmp_path, only=SERVERS) as stack:
        recorded = json.loads((tmp_path / "processes.json").read_text())["processes"]
        os.kill(stack.pid, signal.SIGKILL)

    assert load_stack(StateDir(tmp_path)) is None
    with running(tmp_path, only={"redis"}):
        assert [read_process(pid) for pid, _ in recorded] == [None, None]


def test_missing_components_stop_the_start_and_are_listed(tmp_path: Path) -> None:
    done = command(
        tmp_path, "up", "--only", "postgres,redis",
        INTERLOCK_REDIS_SERVER="/nowhere", INTERLOCK_POSTGRES_BIN="/nowhere",
    )  # fmt: skip

    assert done.returncode == 1
    assert "PostgreSQL" in done.stderr
    assert "apt-get install redis-server" in done.stderr


def test_a_failed_start_prints_the_last_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTERLOCK_REDIS_SERVER", "/bin/false")

    with (
        pytest.raises(StackError, match="redis ended with exit code 1"),
        running(tmp_path, only={"redis"}),
    ):
        pass


def test_no_variable_points_a_server_to_another_installation() -> None:
    environ = {"PGHOST": "elsewhere", "MLFLOW_TRACKING_URI": "x", "HOME": "/root", "NO_PROXY": "a"}

    env = base_environment(environ)

    assert "PGHOST" not in env
    assert env["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert env["NO_PROXY"] == "a,127.0.0.1,localhost"
    assert env["OMP_NUM_THREADS"] == "1"


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    done = command(tmp_path, "up", "--only", "redis,oracle")

    assert done.returncode == 2
    assert "unknown part oracle; expected postgres" in done.stderr
