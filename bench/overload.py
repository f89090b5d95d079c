"""Measures responses in time when the load exceeds a model's capacity: `./run bench overload`.

It uses a real Triton and a model with a settable time per row, which processes rows in sequence
(`bench.sleeper`). Clients send requests without a pause. A cell is the rate of responses within the
model's timeout, divided by the smaller of the request rate and the model's capacity, which is the
rate of one client at Triton itself. Settings are the defaults: timeout 1,000 ms, batches of 32,
breaker 10 of 20. If the costs of rows differ tenfold, a row counts by its cost, so that cheap rows
alone give no good result. For comparison it measures Triton alone, without and with its batcher. A
cell below 0.9 is missed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import sleeper
from bench.overload_load import Job
from bench.testbed import data_plane, machine
from contract.routing import Cluster, ModelRoute, RoutingTable, VersionRoute, encode
from embedded.stack import running

BAR = 0.9
WITHIN_S = 1.0
CLIENTS = (1, 4, 16, 64, 256)
COSTS_MS = (0.1, 1.0, 5.0, 20.0, 100.0, 500.0)
# The mean cost; half of the rows cost ten times as much as the others.
MIXED_MS = (1.0, 20.0, 100.0, 500.0)
QUICK = ((16, 100.0, False), (64, 20.0, False), (16, 100.0, True))
# The minimum duration of a cell, in rows.
ROWS_MIN = 30
SERVED, PLAIN, BATCHED = "sleeper.1", "sleeper.plain", "sleeper.batched"


@dataclass(frozen=True)
class Cell:
    """The number of clients, and the cost of a row, which is the mean if `mixed`."""

    clients: int
    cost_ms: float
    mixed: bool

    def costs_ms(self) -> list[float]:
        """Return the costs of the rows, in turn."""
        if not self.mixed:
            return [self.cost_ms]
        costs = [self.cost_ms * 2 / 11, self.cost_ms * 20 / 11] * 50
        random.Random(0).shuffle(costs)
        return costs

    def __str__(self) -> str:
        return f"{self.cost_ms:g} ms{', tenfold' if self.mixed else ''} | {self.clients}"


@dataclass(frozen=True)
class Target:
    """A server and path to send requests to; `model` is its model in Triton."""

    name: str
    port: int
    path: str
    model: str


@dataclass(frozen=True)
class Result:
    """Rows per second: sent, and answered in time, weighted by cost if costs differ."""

    offered: float
    in_time: float
    statuses: dict[str, int]


def main() -> int:
    """Print a row for each cell; return 1 if one is missed."""
    parser = argparse.ArgumentParser(prog="./run bench overload", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="measure three cells, without Triton alone"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="minimum duration of a cell")
    parser.add_argument("--warm-up", type=float, default=2.0, help="warm-up in seconds")
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--costs-ms", type=float, nargs="+")
    options = parser.parse_args(sys.argv[2:])
    print(f"{machine()}; clients on the same machine, without pauses\n")
    print("| cost of a row | clients | capacity/s | requests/s | in time/s | share "
          "| Triton | its batcher on | responses |\n" + "| --- " * 9 + "|")  # fmt: skip
    missed = 0
    with stand() as (targets, repository):
        for cell in cells(options):
            missed += report(cell, targets, repository, options)
    return int(missed > 0)


def cells(options: argparse.Namespace) -> list[Cell]:
    """Return the cells to measure."""
    if options.quick:
        return [Cell(*each) for each in QUICK]
    constant = options.costs_ms or COSTS_MS
    mixed = [cost for cost in MIXED_MS if options.costs_ms is None or cost in options.costs_ms]
    kinds = [(cost, False) for cost in constant] + [(cost, True) for cost in mixed]
    return [Cell(clients, *kind) for kind in kinds for clients in options.clients]


@contextmanager
def stand() -> Iterator[tuple[list[Target], Path]]:
    """Start Triton, Redis and a data plane; yield the targets, ours first, and the repository."""
    with ExitStack() as exits:
        folder = Path(exits.enter_context(tempfile.TemporaryDirectory()))
        repository = folder / "state" / "triton" / "repository"
        for name, extra in ((SERVED, sleeper.AS_SERVED), (PLAIN, ""), (BATCHED, BATCHER)):
            sleeper.write(repository, name, extra)
        stack = exits.enter_context(running(folder / "state", {"redis", "triton"}))
        triton = stack.ports["triton_http"]
        plane = exits.enter_context(data_plane(folder / "dp", table(triton), stack.redis_url))
        yield (
            [
                Target("data plane", plane.port, "/v2/models/sleeper/infer", SERVED),
                *(
                    Target(name, triton, f"/v2/models/{name}/versions/1/infer", name)
                    for name in (PLAIN, BATCHED)
                ),
            ],
            repository,
        )


BATCHER = "dynamic_batching { }"


def table(triton_port: int) -> bytes:
    """Return a routing table with one model with the default settings."""
    version = VersionRoute(cluster="main", triton_model=SERVED, triton_version="1")
    model = ModelRoute(signature=sleeper.SIGNATURE, stable="1", versions={"1": version})
    cluster = Cluster(endpoints=(f"127.0.0.1:{triton_port}",))
    return encode(RoutingTable(generation=1, models={"sleeper": model}, clusters={"main": cluster}))


def run_clients(
    target: Target, cell: Cell, seconds: float, warm_up_s: float, repository: Path
) -> Result:
    """Run the clients against `target`, and wait until it is idle."""
    seconds = max(seconds, ROWS_MIN * cell.cost_ms / 1000)
    job = Job(target.port, target.path, cell.clients, warm_up_s, seconds, WITHIN_S, cell.costs_ms())
    done = subprocess.run(
        [sys.executable, "-m", "bench.overload_load"],
        input=job.encode(), capture_output=True, check=True,
    )  # fmt: skip
    if target.model == SERVED:
        # No request waits longer than the timeout. Draining here would make the model fast between
        # two cells, so that it would seem to hang in the next.
        time.sleep(WITHIN_S)
    else:
        sleeper.drain(repository, target.model, on=True)
        time.sleep(0.5)
        sleeper.drain(repository, target.model, on=False)
    tally = json.loads(done.stdout)
    elapsed_s = tally["elapsed_s"]
    rows = tally["work_ms"] / cell.cost_ms if cell.mixed else tally["in_time"]
    return Result(tally["sent"] / elapsed_s, rows / elapsed_s, tally["statuses"])


def report(
    cell: Cell, targets: list[Target], repository: Path, options: argparse.Namespace
) -> bool:
    """Print the row of a cell; return whether it is missed."""
    ours, *others = targets
    alone = Cell(1, cell.cost_ms, cell.mixed)
    capacity = run_clients(others[0], alone, options.seconds / 2, 0.2, repository).in_time
    results = [
        run_clients(target, cell, options.seconds, options.warm_up, repository)
        for target in ([ours] if options.quick else targets)
    ]
    shares = [result.in_time / min(result.offered, capacity) for result in results]
    comparison = [f"{share:.2f}" for share in shares[1:]] or ["", ""]
    is_missed = shares[0] < BAR
    result = results[0]
    print(
        f"| {cell} | {capacity:,.1f} | {result.offered:,.0f} | {result.in_time:,.1f} "
        f"| {shares[0]:.2f}{' MISSED' if is_missed else ''} | {' | '.join(comparison)} "
        f"| {json.dumps(result.statuses)} |",
        flush=True,
    )
    return is_missed
