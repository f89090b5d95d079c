"""The real server, started as root with both methods and as an ordinary user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from embedded import postgres
from embedded.part import MissingComponent
from embedded.ports import choose_ports
from tests.embedded.conftest import Supervise


def test_a_missing_server_is_named_with_its_remedy() -> None:
    with pytest.raises(MissingComponent, match=r"PostgreSQL(.|\n)*uv sync --extra embedded"):
        postgres.find_bin({"INTERLOCK_POSTGRES_BIN": "/nowhere"})


def test_the_server_of_the_wheel_is_found() -> None:
    assert (postgres.find_bin({}) / "postgres").exists()


def usable_prefixes() -> list[tuple[str, ...]]:
    """Return the command prefixes that work here: for root those that the machine allows."""
    if os.geteuid() != 0:
        return [()]
    prefixes = (postgres.AS_NOBODY_BY_NAMESPACE, postgres.AS_NOBODY_BY_SETPRIV)
    return [
        prefix
        for prefix in prefixes
        if subprocess.run([*prefix, "true"], check=False).returncode == 0
    ]


def test_root_selects_a_method_that_can_access_another_users_files(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "state").mkdir(parents=True)
    (home / "bin").symlink_to(postgres.find_bin({}))
    home.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(home, 1000, 1000)

    prefix = postgres.unprivileged_prefix(home / "bin", home / "state" / "postgres")

    assert prefix == (postgres.AS_NOBODY_BY_SETPRIV if os.geteuid() == 0 else ())


async def test_one_directory_works_with_every_method_in_turn(
    supervise: Supervise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = choose_ports(tmp_path / "ports.json", {}, prefer_usual=False)["postgres"]
    for number, prefix in enumerate(usable_prefixes()):
        monkeypatch.setattr(postgres, "unprivileged_prefix", lambda *paths, prefix=prefix: prefix)
        part = postgres.part(tmp_path / "data", port, "secret", dict(os.environ), {})
        supervisor = supervise(part)

        await supervisor.start()
        with psycopg.connect(postgres.database_url(port, "secret"), autocommit=True) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS ways (number int)")
            connection.execute("INSERT INTO ways VALUES (%s)", [number])
            rows = connection.execute("SELECT number FROM ways ORDER BY number").fetchall()
        await supervisor.stop()

        assert [n for (n,) in rows] == list(range(number + 1))


async def test_it_requires_the_password(supervise: Supervise, tmp_path: Path) -> None:
    port = choose_ports(tmp_path / "ports.json", {}, prefer_usual=False)["postgres"]
    supervisor = supervise(postgres.part(tmp_path / "data", port, "good", dict(os.environ), {}))
    await supervisor.start()

    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres.database_url(port, "bad"))


def test_the_pid_file_of_a_dead_server_is_removed(tmp_path: Path) -> None:
    # This process's pid stands for a pid that another process reuses.
    (tmp_path / "postmaster.pid").write_text(f"{os.getpid()}\n{tmp_path}\n")

    postgres.clear_stale_pid(tmp_path)

    assert not (tmp_path / "postmaster.pid").exists()


def test_a_server_of_an_earlier_run_is_stopped(tmp_path: Path) -> None:
    # A shell's background jobs ignore SIGINT; PostgreSQL handles it.
    handle = "import signal, sys, time; signal.signal(signal.SIGINT, signal.SIG_DFL)"
    wait = f"{handle}; print('up', flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", wait, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as server:
        assert server.stdout is not None
        server.stdout.readline()
        (tmp_path / "postmaster.pid").write_text(f"{server.pid}\n{tmp_path}\n")

        postgres.clear_stale_pid(tmp_path)

    assert server.returncode != 0
