"""Strangers against a data plane: what others feel meanwhile, and what it costs: `./run attack`.

A real Triton and Redis, one worker, 64 senders of each kind of hostile request for half a minute,
and beside them one client at a steady rate. Every answer of that client must be right, 99 of 100
within 100 ms, no process of the worker may die, and memory stays within what docs/dataplane.md
states.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import attackers
from bench.testbed import (
    Process,
    Target,
    data_plane,
    free_port,
    machine,
    resident_mb,
    route,
    sample,
    write_models,
)
from contract.routing import Cluster, RoutingTable, encode
from embedded.stack import running

MODEL = "plain"
SENDERS = 64
P99_MS_MAX = 100.0
RATE = 100.0
CONNECTIONS = 8
# As docs/dataplane.md states it: three times INTERLOCK_BODIES_BYTES_MAX beyond what a worker takes
# at rest, and for the process that reads large requests 32 times INTERLOCK_BODY_BYTES_MAX.
WORKER_GROWTH_MB_MAX = 3 * 64 * 1024**2 / 1e6
READING_MB_MAX = 32 * 16 * 1024**2 / 1e6 + 100
# gRPC has a message in memory, several times, before anybody sees it.
GRPC_GROWTH_MB_MAX = SENDERS * 8 * attackers.GRPC_BYTES / 1e6
READING = b"dataplane.reading.process"


@dataclass(frozen=True)
class Result:
    """One attack: what the steady client met, and what the data plane took."""

    p99_ms: float
    errors: float
    worker_growth_mb: float
    reading_mb: float
    survived: bool
    answers: dict[str, int]


def main() -> int:
    """Print a row for each bar of each attack; return 1 where one is missed."""
    parser = argparse.ArgumentParser(prog="./run attack", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which: {', '.join(attackers.NAMES)}")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--senders", type=int, default=SENDERS)
    options = parser.parse_args(sys.argv[2:])
    unknown = set(options.names) - set(attackers.NAMES)
    if unknown:
        parser.error(f"no such attack: {', '.join(sorted(unknown))}")
    print(f"{machine()}; {options.senders} senders for {options.seconds:g} s each\n")
    print("| attack | bar | measured | |\n| --- | --- | --- | --- |")
    missed = 0
    for name in options.names or attackers.NAMES:
        with stand() as plane:
            missed += report(name, attack(name, *plane, options.senders, options.seconds))
    return int(missed > 0)


@contextmanager
def stand() -> Iterator[tuple[Process, int]]:
    """Start Triton, Redis and a data plane without tenants; yield it and its port for gRPC."""
    with ExitStack() as exits:
        folder = Path(exits.enter_context(tempfile.TemporaryDirectory()))
        write_models(folder / "state" / "triton" / "repository")
        stack = exits.enter_context(running(folder / "state", {"redis", "triton"}))
        endpoint = f"127.0.0.1:{stack.ports['triton_http']}"
        clusters = {"main": Cluster(endpoints=(endpoint,))}
        models = {MODEL: route("flowers")}
        table = encode(RoutingTable(generation=1, models=models, clusters=clusters))
        grpc_port = free_port() + 5_000
        settings = {
            "INTERLOCK_WORKERS": "1",
            "INTERLOCK_GRPC_BIND": f"127.0.0.1:{grpc_port}",
        }
        plane = exits.enter_context(
            data_plane(folder / "plane", table, stack.redis_url, **settings)
        )
        yield plane, grpc_port


def attack(name: str, plane: Process, grpc_port: int, senders: int, seconds: float) -> Result:
    """Send from all sides while the steady client asks."""
    target = Target("others", plane.port, f"/v2/models/{MODEL}/infer", plane.pids, headers="")
    sample(target, CONNECTIONS, 2.0, RATE)
    workers = [pid for pid in plane.pids if not _is_reading(pid)]
    rest_mb = max(map(resident_mb, workers))
    port = grpc_port if name in attackers.OVER_GRPC else plane.port
    command = [
        sys.executable, "-m", "bench.attackers", name, str(port), MODEL, str(senders), str(seconds),
    ]  # fmt: skip
    with Watch(plane) as watch, subprocess.Popen(command, stdout=subprocess.PIPE) as sender:
        time.sleep(0.5)
        others = sample(target, CONNECTIONS, max(1.0, seconds - 1.0), RATE)
        output, _ = sender.communicate()
    return Result(
        others.p99_ms,
        others.errors,
        watch.worker_mb - rest_mb,
        watch.reading_mb,
        set(workers) <= set(plane.pids),
        json.loads(output),
    )


class Watch:
    """Keeps the most memory that the processes of a data plane took while the block ran."""

    def __init__(self, plane: Process) -> None:
        self.worker_mb = 0.0
        self.reading_mb = 0.0
        self._plane = plane
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            try:
                for pid in self._plane.pids:
                    if _is_reading(pid):
                        self.reading_mb = max(self.reading_mb, resident_mb(pid))
                    else:
                        self.worker_mb = max(self.worker_mb, resident_mb(pid))
            except OSError:
                # It ended while it was looked at.
                continue


def _is_reading(pid: int) -> bool:
    try:
        return READING in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def report(name: str, result: Result) -> int:
    """Print the rows of one attack; return how many bars it missed."""
    growth_mb_max = GRPC_GROWTH_MB_MAX if name in attackers.OVER_GRPC else WORKER_GROWTH_MB_MAX
    bars = [
        (f"p99 of others < {P99_MS_MAX:g} ms", f"{result.p99_ms:.1f} ms",
         result.p99_ms < P99_MS_MAX),
        ("no error of others", f"{result.errors:g}", result.errors == 0),
        ("no worker dies", "alive" if result.survived else "died", result.survived),
        (f"a worker takes < {growth_mb_max:.0f} MB more",
         f"{result.worker_growth_mb:.0f} MB", result.worker_growth_mb < growth_mb_max),
        (f"reading takes < {READING_MB_MAX:.0f} MB", f"{result.reading_mb:.0f} MB",
         result.reading_mb < READING_MB_MAX),
        ("answers", json.dumps(result.answers), bool(result.answers)),
    ]  # fmt: skip
    for bar, measured, met in bars:
        print(f"| {name} | {bar} | {measured} | {'met' if met else 'MISSED'} |", flush=True)
    return sum(not met for _, _, met in bars)
