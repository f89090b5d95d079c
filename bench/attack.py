"""Measures the service to normal clients during attacks on a data plane: `./run attack`.

It uses a real Triton and Redis, one worker, and 64 senders of each kind of hostile request for half
a minute, beside one client at a constant rate. Each response to that client must be right and 99 %
must come within 100 ms. No worker process may die, and memory must stay within the limits in
docs/dataplane.md.
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
# The limits in docs/dataplane.md: three times INTERLOCK_BODIES_BYTES_MAX above a worker's memory at
# rest, and 32 times INTERLOCK_BODY_BYTES_MAX for the process that reads large requests.
WORKER_GROWTH_MB_MAX = 3 * 64 * 1024**2 / 1e6
READING_MB_MAX = 32 * 16 * 1024**2 / 1e6 + 100
# gRPC holds several copies of a message in memory before the handler gets it.
GRPC_GROWTH_MB_MAX = SENDERS * 8 * attackers.GRPC_BYTES / 1e6
READING = b"dataplane.reading.process"


@dataclass(frozen=True)
class Result:
    """One attack: the latency and errors of the normal client, and the data plane's memory."""

    p99_ms: float
    errors: float
    worker_growth_mb: float
    reading_mb: float
    survived: bool
    answers: dict[str, int]


def main() -> int:
    """Print a row for each bar of each attack; return 1 if one is missed."""
    parser = argparse.ArgumentParser(prog="./run attack", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"attacks to run: {', '.join(attackers.NAMES)}")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--senders", type=int, default=SENDERS)
    options = parser.parse_args(sys.argv[2:])
    unknown = set(options.names) - set(attackers.NAMES)
    if unknown:
        parser.error(
            f"unknown attack {', '.join(sorted(unknown))}; "
            f"expected one of {', '.join(attackers.NAMES)}"
        )
    print(f"{machine()}; {options.senders} senders for {options.seconds:g} s each\n")
    print("| attack | bar | measured | |\n| --- | --- | --- | --- |")
    missed = 0
    for name in options.names or attackers.NAMES:
        with stand() as plane:
            missed += report(name, attack(name, *plane, options.senders, options.seconds))
    return int(missed > 0)


@contextmanager
def stand() -> Iterator[tuple[Process, int]]:
    """Start Triton, Redis and a data plane without tenants; yield it and its gRPC port."""
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
    """Run the attack and the normal client at the same time."""
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
    """Records the peak memory of the processes of a data plane while the block runs."""

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
                # The process ended during the measurement.
                continue


def _is_reading(pid: int) -> bool:
    try:
        return READING in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def report(name: str, result: Result) -> int:
    """Print the rows of one attack; return the number of missed bars."""
    growth_mb_max = GRPC_GROWTH_MB_MAX if name in attackers.OVER_GRPC else WORKER_GROWTH_MB_MAX
    bars = [
        (f"p99 of normal clients < {P99_MS_MAX:g} ms", f"{result.p99_ms:.1f} ms",
         result.p99_ms < P99_MS_MAX),
        ("no error of normal clients", f"{result.errors:g}", result.errors == 0),
        ("no worker dies", "alive" if result.survived else "died", result.survived),
        (f"memory growth of a worker < {growth_mb_max:.0f} MB",
         f"{result.worker_growth_mb:.0f} MB", result.worker_growth_mb < growth_mb_max),
        (f"memory of the reading process < {READING_MB_MAX:.0f} MB", f"{result.reading_mb:.0f} MB",
         result.reading_mb < READING_MB_MAX),
        ("responses", json.dumps(result.answers), bool(result.answers)),
    ]  # fmt: skip
    for bar, measured, met in bars:
        print(f"| {name} | {bar} | {measured} | {'met' if met else 'MISSED'} |", flush=True)
    return sum(not met for _, _, met in bars)
