"""Chooses the loopback port of each server.

In this order: the requested port (option, then INTERLOCK_PORT_…); the port of the last run; the
usual port; any free port. A requested port that is in use is an error; the others are skipped.
"""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

from embedded.part import StackError

USUAL_PORTS = {
    "web": 8000,
    "dataplane": 8080,
    "dataplane_grpc": 8081,
    "mlflow": 5000,
    "postgres": 5433,
    "redis": 6380,
    "triton_http": 8001,
    "triton_grpc": 8002,
    "triton_metrics": 8003,
}

# Below the kernel's range for outgoing connections, so that no connection can take a chosen port
# before the server starts.
FREE_RANGE = range(20_000, 32_000)
FREE_ATTEMPTS_MAX = 200


def is_free(port: int) -> bool:
    """Return whether a server can listen on the loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def variable_of(name: str) -> str:
    return f"INTERLOCK_PORT_{name.upper()}"


def requested_ports(
    options: Mapping[str, int | None], environ: Mapping[str, str]
) -> dict[str, int]:
    """Return the ports that the user requests. Raises StackError for an invalid port."""
    requested = {}
    for name in USUAL_PORTS:
        value = options.get(name) or environ.get(variable_of(name), "")
        if value == "":
            continue
        if not str(value).isdigit() or not 0 < int(value) < 65_536:
            raise StackError(f"{variable_of(name)}={value!r} is not a valid port (1 to 65535).")
        requested[name] = int(value)
    return requested


def choose_ports(
    file: Path, requested: Mapping[str, int], *, prefer_usual: bool = True
) -> dict[str, int]:
    """Choose a port for every server and store the choice in `file` for the next run.

    Raises:
        StackError: a requested port is in use, or no port is free.
    """
    last_run = _read(file)
    chosen: dict[str, int] = {}
    for name, usual in USUAL_PORTS.items():
        if name in requested:
            chosen[name] = _check_free(name, requested[name])
            continue
        candidates = [last_run[name]] if name in last_run else []
        candidates += [usual] if prefer_usual else []
        chosen[name] = _first_free(candidates, taken={*chosen.values(), *requested.values()})
    file.write_text(json.dumps(chosen, indent=1))
    return chosen


def _check_free(name: str, port: int) -> int:
    if not is_free(port):
        raise StackError(
            f"Port {port}, requested for {name}, is in use. Free it, or choose another "
            f"with {variable_of(name)} or --port-{name.replace('_', '-')}."
        )
    return port


def _first_free(candidates: Iterable[int], taken: set[int]) -> int:
    drawn = secrets.SystemRandom().sample(FREE_RANGE, FREE_ATTEMPTS_MAX)
    for port in [*candidates, *drawn]:
        if port not in taken and is_free(port):
            return port
    raise StackError(f"No free loopback port from {FREE_RANGE.start} to {FREE_RANGE.stop}.")


def _read(path: Path) -> dict[str, int]:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {name: port for name, port in document.items() if isinstance(port, int)}
