"""Dumps the stack's real PostgreSQL and restores it while everything runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from embedded.postgres import find_bin
from embedded.state import ROOT
from tests.faults.ground import Ground

REPLACED = "replaced"
RESTORED = "restored"


def dump(ground: Ground, path: Path) -> None:
    """Write a dump of the database."""
    _run(ground, "pg_dump", "--format=custom", f"--file={path}", ground.stack.database_url)


def restore(ground: Ground, path: Path) -> None:
    """Replace the database by that of the dump; the replaced one is kept under another name.

    The control plane runs meanwhile, and its connections are closed.
    """
    name = str(conninfo_to_dict(ground.stack.database_url)["dbname"])
    _execute(ground, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(RESTORED)))
    _run(ground, "pg_restore", "--exit-on-error", f"--dbname={_url(ground, RESTORED)}", str(path))
    # No connection is allowed meanwhile: a database can only be renamed without connections.
    for each in (name, RESTORED):
        _allow(ground, each, allowed=False)
    _rename(ground, name, REPLACED)
    _rename(ground, RESTORED, name)
    for each in (name, REPLACED):
        _allow(ground, each, allowed=True)


def start_epoch(ground: Ground) -> None:
    """Make data planes accept the restored database's tables, as in docs/operations.md."""
    command = [sys.executable, "manage.py", "start_epoch", "--yes", "--reason", "drill"]
    subprocess.run(command, cwd=ROOT, env=ground.stack.env, check=True, capture_output=True)


def replaced_outcomes(ground: Ground, prefix: str) -> set[str]:
    """Return the units of a test's outcomes in the replaced database.

    Outcomes stored after the dump are not in the restored database and are not sent again.
    """
    with psycopg.connect(_url(ground, REPLACED)) as connection:
        query = "SELECT unit FROM experiments_outcomerow WHERE unit LIKE %s"
        return {unit for (unit,) in connection.execute(query, [f"{prefix}-%"]).fetchall()}


def _allow(ground: Ground, name: str, *, allowed: bool) -> None:
    statement = sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS {}")
    _execute(ground, statement.format(sql.Identifier(name), sql.Literal(allowed)))
    if not allowed:
        end = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = {}"
        _execute(ground, sql.SQL(end).format(sql.Literal(name)))


def _rename(ground: Ground, name: str, to: str) -> None:
    statement = sql.SQL("ALTER DATABASE {} RENAME TO {}")
    _execute(ground, statement.format(sql.Identifier(name), sql.Identifier(to)))


def _execute(ground: Ground, statement: sql.Composed) -> None:
    with psycopg.connect(_url(ground, "postgres"), autocommit=True) as connection:
        connection.execute(statement)


def _url(ground: Ground, name: str) -> str:
    return ground.stack.database_url.rpartition("/")[0] + f"/{name}"


def _run(ground: Ground, command: str, *arguments: str) -> None:
    program = find_bin(ground.stack.env) / command
    subprocess.run([program, *arguments], check=True, capture_output=True)
