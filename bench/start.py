"""Measures the cost of `./run up`: CPU-seconds until ready, and each process's memory at rest.

The stack is started twice on its own directory, without MLflow: the first start creates the
databases, the second one is measured. Resident memory counts a shared page once per process,
proportional memory once in total.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from embedded.resource_usage import Usage, descendants, usage_of
from embedded.stack import PART_NAMES, running

PARTS = frozenset(PART_NAMES) - {"mlflow"}
# The time for work after the start: first ticks, first requests.
SETTLE_S = 20.0
REST_S = 20.0
MB = 1_000_000
# The mark in the command line that identifies a part, most specific first.
MARKS = {
    "embedded up": "supervisor",
    "dataplane.worker": "data plane, worker",
    "dataplane.reading": "data plane, reading",
    "-m dataplane": "data plane, parent",
    "granian": "web",
    "manage.py ingest": "ingester",
    "controlplane.beat": "beat",
    "controlplane.worker": "worker",
    "triton_python_backend_stub": "triton, a model",
    "tritonserver": "triton",
    "valkey-server": "redis",
    "redis-server": "redis",
    "postgres": "postgres",
}


@dataclass(frozen=True)
class Start:
    """One start: seconds until ready, and the usage of each process by then and at rest."""

    took_s: float
    at_ready: list[Usage]
    at_rest: list[Usage]
    # CPU-seconds of commands that ended before ready: migrate, bootstrap, the self-test.
    commands_cpu_s: float
    # The share of a core that all processes use at rest.
    rest_share: float

    @property
    def cpu_s(self) -> float:
        return sum(map(_used_s, self.at_ready)) + self.commands_cpu_s


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="interlock-start-") as directory:
        first = measure(Path(directory))
        second = measure(Path(directory))
    report(second)
    print(f"\nready after {second.took_s:.1f} s; CPU {second.cpu_s:.1f} s", end="; ")
    print(f"at rest {second.rest_share:.1%} of a core", end=" ")
    print(f"(first start, with initdb and migrations: {first.took_s:.1f} s, {first.cpu_s:.1f} s)")
    return 0


def measure(directory: Path) -> Start:
    began = time.monotonic()
    with running(directory, PARTS) as stack:
        took_s = time.monotonic() - began
        at_ready = usage_of(descendants(stack.pid))
        commands_cpu_s = sum(u.children_cpu_s for u in at_ready if u.pid == stack.pid)
        time.sleep(SETTLE_S)
        before = _cpu_s(stack.pid)
        time.sleep(REST_S)
        at_rest = usage_of(descendants(stack.pid))
        rest_share = (_cpu_s(stack.pid) - before) / REST_S
    return Start(took_s, at_ready, at_rest, commands_cpu_s, rest_share)


def report(start: Start) -> None:
    """Print a row for each kind of process, and the sums."""
    print(
        f"{'process':<22}{'count':>6}{'CPU s to ready':>16}{'resident MB':>13}{'proportional':>14}"
    )
    for name in dict.fromkeys(map(_name, start.at_rest)):
        rows = [usage for usage in start.at_rest if _name(usage) == name]
        ready = [usage for usage in start.at_ready if _name(usage) == name]
        _row(name, len(rows), sum(map(_used_s, ready)), rows)
    print(f"{'ended commands':<22}{'':>6}{start.commands_cpu_s:>16.2f}")
    _row("all", len(start.at_rest), start.cpu_s, start.at_rest)


def _row(name: str, count: int, cpu_s: float, rows: list[Usage]) -> None:
    resident = sum(usage.resident_bytes for usage in rows) / MB
    proportional = sum(usage.proportional_bytes for usage in rows) / MB
    print(f"{name:<22}{count:>6}{cpu_s:>16.2f}{resident:>13.0f}{proportional:>14.0f}")


def _used_s(usage: Usage) -> float:
    """Return the CPU of a process and its ended children, such as PostgreSQL's sessions.

    The children of the supervisor are commands, which have their own row.
    """
    is_supervisor = _name(usage) == MARKS["embedded up"]
    return usage.cpu_s + (0.0 if is_supervisor else usage.children_cpu_s)


def _cpu_s(root: int) -> float:
    """Return the CPU of all processes and of their ended children."""
    return sum(u.cpu_s + u.children_cpu_s for u in usage_of(descendants(root)))


def _name(usage: Usage) -> str:
    return next((name for mark, name in MARKS.items() if mark in usage.command), usage.command[:20])
