"""Which loopback port each server listens on.

In this order: the one asked for (option, then INTERLOCK_PORT_…), which must be free; the one used
last time; the usual one; any free one. Only the first is a promise, the others yield when taken.
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

# Below the range from which the kernel takes ports for outgoing connections, so that nothing
# takes a chosen port between the choice and the server's start.
FREE_RANGE = range(20_000, 32_000)
FREE_ATTEMPTS_MAX = 200


def is_free(port: int) -> bool:
    """Whether a server could listen on the loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def variable_of(name: str) -> str:
    return f"INTERLOCK_PORT_{name.upper()}"


def asked_ports(options: Mapping[str, int | None], environ: Mapping[str, str]) -> dict[str, int]:
    """The ports the user insists on. Raises StackError for a value that is not a port."""
    asked = {}
    for name in USUAL_PORTS:
        value = options.get(name) or environ.get(variable_of(name), "")
        if value == "":
            continue
        if not str(value).isdigit() or not 0 < int(value) < 65_536:
            raise StackError(f"{variable_of(name)}={value!r} is not a port (1 to 65535).")
        asked[name] = int(value)
    return asked


def choose_ports(
    remembered_in: Path, asked: Mapping[str, int], *, prefer_usual: bool = True
) -> dict[str, int]:
    """Choose a port for every server and remember it in the file `remembered_in`.

    Raises StackError when a port that was asked for is taken.
    """
    remembered = _read(remembered_in)
    chosen: dict[str, int] = {}
    for name, usual in USUAL_PORTS.items():
        if name in asked:
            chosen[name] = _insist(name, asked[name])
            continue
        candidates = [remembered[name]] if name in remembered else []
        candidates += [usual] if prefer_usual else []
        chosen[name] = _first_free(candidates, taken={*chosen.values(), *asked.values()})
    remembered_in.write_text(json.dumps(chosen, indent=1))
    return chosen


def _insist(name: str, port: int) -> int:
    if not is_free(port):
        raise StackError(
            f"Port {port}, asked for {name}, is in use. Free it, or choose another "
            f"with {variable_of(name)} or --port-{name.replace('_', '-')}."
        )
    return port


def _first_free(candidates: Iterable[int], taken: set[int]) -> int:
    drawn = secrets.SystemRandom().sample(FREE_RANGE, FREE_ATTEMPTS_MAX)
    for port in [*candidates, *drawn]:
        if port not in taken and is_free(port):
            return port
    raise StackError(f"No free loopback port found in {FREE_RANGE.start} to {FREE_RANGE.stop}.")


def _read(path: Path) -> dict[str, int]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {name: port for name, port in found.items() if isinstance(port, int)}
