"""PostgreSQL servers for tests, and PgBouncer if it is installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper

from controlplane import env
from embedded.postgres import find_bin, unprivileged_prefix
from embedded.stack import Stack

DEBS = Path(__file__).parents[2] / ".tools" / "debs"
PROGRAM = shutil.which("pgbouncer") or str(DEBS / "usr" / "sbin" / "pgbouncer")
PGBOUNCER = PROGRAM if Path(PROGRAM).exists() else None
LIBRARIES = DEBS / "usr" / "lib" / "x86_64-linux-gnu"
WITHIN_S = 20.0


@contextmanager
def django_session(url: str, **options: Any) -> Iterator[BaseDatabaseWrapper]:
    """Yield Django's connection for DATABASE_URL = `url`; it is not open yet."""
    wrapper = connection.copy(f"of-{abs(hash(url)) % 10**9}")
    before = os.environ.get("DATABASE_URL")
    os.environ["DATABASE_URL"] = url
    try:
        database = env.database("DATABASE_URL", "")
    finally:
        os.environ.pop("DATABASE_URL")
        if before is not None:
            os.environ["DATABASE_URL"] = before
    database["OPTIONS"] = {**database["OPTIONS"], **options}  # type: ignore[dict-item]
    wrapper.settings_dict = {**connection.settings_dict, **database}
    try:
        yield wrapper
    finally:
        wrapper.close()
        wrapper.close_pool()  # type: ignore[attr-defined]


def query_one(wrapper: BaseDatabaseWrapper, statement: str) -> Any:
    with wrapper.cursor() as cursor:
        cursor.execute(statement)
        row = cursor.fetchone()
    return row and row[0]


def alter(stack: Stack, **values: str) -> None:
    """Change settings of a server for new sessions."""
    with psycopg.connect(stack.database_url, autocommit=True) as own:
        # A demoted server accepts this too.
        own.execute("SET default_transaction_read_only = off")
        for name, value in values.items():
            own.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        own.execute("SELECT pg_reload_conf()")
    # The postmaster notifies its sessions with a delay.
    time.sleep(0.3)


@contextmanager
def pgbouncer(stack: Stack, directory: Path) -> Iterator[str]:
    """Run PgBouncer in transaction mode; yield its DATABASE_URL."""
    assert PGBOUNCER is not None
    server = urlsplit(stack.database_url)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (directory / "users.txt").write_text(f'"{server.username}" "{server.password}"\n')
    (directory / "pgbouncer.ini").write_text(
        f"[databases]\ninterlock = host=127.0.0.1 port={server.port} dbname=interlock\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = scram-sha-256\nauth_file = {directory}/users.txt\npool_mode = transaction\n"
        "default_pool_size = 4\nmax_client_conn = 100\n"
    )
    environ = os.environ | {"LD_LIBRARY_PATH": str(LIBRARIES)}
    # It refuses to run as root, as PostgreSQL does.
    prefix = unprivileged_prefix(find_bin(os.environ), directory)
    command = [*prefix, PGBOUNCER, str(directory / "pgbouncer.ini")]
    process = subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL)
    url = f"postgresql://{server.username}:{server.password}@127.0.0.1:{port}/interlock"
    try:
        _wait_for(port, process)
        yield url
    finally:
        process.terminate()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + WITHIN_S
    while time.monotonic() < end:
        assert process.poll() is None, "it ended"
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError("nothing listens")
