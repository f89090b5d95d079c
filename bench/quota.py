"""Measures how exactly a fleet enforces a quota: requests admitted in 10 s, by type of load.

Ledgers and leases are those of the data plane, with a real Redis. Instances and workers are
simulated in this process, which calls them as connections would. The last rows send HTTP requests
to real instances. Each row is the mean of its windows of 10 s. The first window follows a rest, so
that it may have a burst.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from time import monotonic

import httpx
import redis.asyncio as redis

from bench.testbed import data_plane, free_port, machine
from contract.routing import RoutingTable, Tenant, encode
from dataplane.quotas.leases import Leases
from dataplane.quotas.ledger import Entry, Ledger
from dataplane.quotas.limits import Limits
from embedded.valkey import find_server

WINDOW_S = 10.0
BAR = 0.05
# The largest allowed share of rejected requests below the quota.
REFUSED_MAX = 0.01
KEY = "bench"
OUTCOME = {"unit_id": "u", "metric": "m", "value": 1}


@dataclass(frozen=True)
class Case:
    """A fleet and its load: `load` is a multiple of the rate, `skew` its distribution."""

    instances: int
    workers: int
    connections: int
    skew: str = "even"
    rate: float = 100.0
    load: float = 3.0
    burst: float | None = None

    def __str__(self) -> str:
        burst = f", burst {self.burst:g}" if self.burst is not None else ""
        return (
            f"{self.instances} × {self.workers}, {self.connections} connections, {self.skew}, "
            f"{self.rate:g}/s with {self.load:g}-fold load{burst}"
        )


OVER = (
    Case(1, 1, 1),
    Case(1, 4, 1, rate=1_000),
    Case(1, 8, 100),
    Case(10, 1, 1),
    Case(10, 8, 1, rate=500),
    Case(10, 8, 100),
    Case(10, 8, 100, "one takes most", rate=500),
    Case(3, 4, 10, "half on one", rate=30),
    Case(10, 8, 100, load=20),
    Case(10, 8, 100, burst=400),
)
UNDER = (
    Case(1, 4, 1, load=0.8),
    Case(10, 8, 100, load=0.8, rate=500),
    Case(10, 8, 1, load=0.8),
)


@dataclass
class Count:
    """The times of admitted requests, and the number of rejected ones."""

    admitted: list[float] = field(default_factory=list)
    rejected: int = 0

    def within(self, start: float, seconds: float = WINDOW_S) -> int:
        return sum(start <= at < start + seconds for at in self.admitted)


def main() -> int:
    """Print a row for each bar; return 1 if one is missed."""
    parser = argparse.ArgumentParser(prog="./run bench quota", description=__doc__)
    parser.add_argument("--windows", type=int, default=3, help="windows of 10 s per row")
    parser.add_argument("--together", type=int, default=2, help="rows measured at a time")
    options = parser.parse_args(sys.argv[2:])
    print(f"{machine()}; {options.windows} windows of {WINDOW_S:g} s\n")
    print("| case | bar | measured ± s.e. | |\n| --- | --- | --- | --- |", flush=True)
    with valkey() as url:
        missed = asyncio.run(_fleets(url, options.windows, options.together))
        missed += asyncio.run(_without_redis())
    with valkey() as url:
        missed += _live(url, options.windows)
    return int(missed > 0)


def report(label: str, bar: str, values: Sequence[float], is_kept: Callable[[float], bool]) -> int:
    """Print a row; return 1 if a window misses its bar."""
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    kept = all(map(is_kept, values))
    worst = ", ".join(f"{value:.3f}" for value in values)
    mark = "yes" if kept else f"**missed**: {worst}"
    print(f"| {label} | {bar} | {mean(values):.3f} ± {error:.3f} | {mark} |", flush=True)
    return int(not kept)


# --- fleets in this process ----------------------------------------------------------------------


class Fleet:
    """Instances with workers; each worker is an entry of its instance's ledger."""

    def __init__(self, folder: Path, url: str, case: Case) -> None:
        self.case = case
        self.limits = Limits(case.rate, case.burst or case.rate, None)
        self._client = redis.Redis.from_url(url, socket_timeout=5.0)
        self.leases: list[Leases] = []
        self.ledgers: list[Ledger] = []
        self.entries: list[list[Entry]] = []
        for number in range(case.instances):
            self._instance(folder / f"i{number}", f"i{number}")
        self._tasks: list[asyncio.Task[None]] = []

    def _instance(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True)
        ledgers = [Ledger(folder / "quotas", slot) for slot in range(self.case.workers)]
        entries = [Entry(ledger, ledger.find("tenant")) for ledger in ledgers]
        for entry in entries:
            entry.limit(self.limits)
        tenants = {entries[0].number: ("tenant", self.limits)}
        self.ledgers += ledgers
        self.entries.append(entries)
        # The other workers only check whether this one has ended.
        lock = folder / "quotas.lock"
        self.leases.append(Leases(ledgers[0], self._client, name, lambda: tenants, lock))

    def start(self) -> None:
        self._tasks = [asyncio.create_task(lease.run()) for lease in self.leases]

    async def close(self) -> None:
        for lease in self.leases:
            lease.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()  # type: ignore[attr-defined]
        for lease in self.leases:
            lease.close()
        for ledger in self.ledgers:
            ledger.close()

    def place(self, number: int) -> Entry:
        """Return the worker of connection `number`."""
        case = self.case
        if case.skew == "one takes most" and number % 10:
            return self.entries[0][0]
        if case.skew == "half on one" and number % 2:
            return self.entries[0][0]
        rng = random.Random(number)
        return rng.choice(rng.choice(self.entries))

    async def send_requests(self, seconds: float) -> Count:
        """Send requests from all connections for `seconds`."""
        count = Count()
        until = monotonic() + seconds
        pause_s = self.case.connections / (self.case.rate * self.case.load)
        await asyncio.gather(
            *(
                self._connection(self.place(number), pause_s, until, count)
                for number in range(self.case.connections)
            )
        )
        return count

    async def _connection(self, entry: Entry, pause_s: float, until: float, count: Count) -> None:
        due = monotonic() + random.uniform(0, pause_s)
        while due < until:
            await asyncio.sleep(max(0.0, due - monotonic()))
            now = monotonic()
            # A late connection does not send the missed requests at once.
            due = max(due + pause_s, now)
            if entry.take(now, 1.0) == 0.0:
                count.admitted.append(now)
            else:
                count.rejected += 1


@asynccontextmanager
async def a_fleet(url: str, case: Case) -> AsyncIterator[Fleet]:
    with tempfile.TemporaryDirectory(prefix="interlock-quota-") as folder:
        fleet = Fleet(Path(folder), url, case)
        fleet.start()
        try:
            # Wait until each instance knows all others.
            await asyncio.sleep(1.5)
            yield fleet
        finally:
            await fleet.close()


async def _fleets(url: str, windows: int, together: int) -> int:
    gate = asyncio.Semaphore(together)
    # Each fleet has its own database.
    missed = await asyncio.gather(
        *(
            _measure(gate, f"{url.rpartition('/')[0]}/{number}", case, windows)
            for number, case in enumerate([*OVER, *UNDER])
        )
    )
    return sum(missed)


async def _measure(gate: asyncio.Semaphore, url: str, case: Case, windows: int) -> int:
    async with gate, a_fleet(url, case) as fleet:
        start = monotonic()
        count = await fleet.send_requests(windows * WINDOW_S)
    quota = case.rate * WINDOW_S
    if case.load > 1:
        parts = [count.within(start + i * WINDOW_S) / quota for i in range(windows)]
        return report(str(case), "1 ± 0.05 of the quota", parts, is_within)
    rejected = [count.rejected / max(1, len(count.admitted) + count.rejected)]
    return report(f"{case}: rejected", f"≤ {REFUSED_MAX:g}", rejected, lambda x: x <= REFUSED_MAX)


def is_within(part: float) -> bool:
    return abs(part - 1) <= BAR


async def _without_redis() -> int:
    """Stop and restart Redis: each worker gets its share meanwhile, and at most a burst passes."""
    case = Case(4, 2, 40)
    missed = 0
    with ExitStack() as servers:
        server = servers.enter_context(Server())
        async with a_fleet(server.url, case) as fleet:
            requests = asyncio.create_task(fleet.send_requests(45))
            await asyncio.sleep(12)
            server.stop()
            stopped_at = monotonic()
            await asyncio.sleep(13)
            alone = [not ledger.is_leased(monotonic()) for ledger in fleet.ledgers]
            server.start()
            restarted_at = monotonic()
            count = await requests
            leased = [ledger.is_leased(monotonic()) for ledger in fleet.ledgers]
    quota = case.rate * WINDOW_S
    without_redis = count.within(stopped_at + 3) / quota
    missed += report("without Redis: all shares together", "1 ± 0.05", [without_redis], is_within)
    across = count.within(restarted_at - 5) / quota
    missed += report("10 s across the restart of Redis", "≤ 1.05", [across], lambda x: x <= 1.05)
    after = count.within(restarted_at + 5) / quota
    missed += report("after the restart of Redis", "1 ± 0.05", [after], is_within)
    is_correct = float(all(alone) and all(leased))
    return missed + report(
        "each worker knows whether it has a lease", "1", [is_correct], lambda x: x == 1
    )


# --- real instances ------------------------------------------------------------------------------


def _live(url: str, windows: int) -> int:
    missed = 0
    rate = 50.0
    tenant = Tenant(keys=(hashlib.sha256(KEY.encode()).hexdigest(),), requests_per_s=rate)
    table = encode(
        RoutingTable(generation=1, models={}, clusters={}, tenants={"t": tenant}, key_required=True)
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="interlock-quota-")))
        planes = [
            stack.enter_context(
                data_plane(
                    folder / name,
                    table,
                    url,
                    INTERLOCK_INSTANCE_NAME=name,
                    INTERLOCK_WORKERS=str(workers),
                )
            )
            for name, workers in (("a", 4), ("b", 2))
        ]
        for what, ports in (
            ("one keep-alive connection on one of 4 + 2 workers", [planes[0].port]),
            ("40 connections over both instances", [plane.port for plane in planes] * 20),
        ):
            start, count = asyncio.run(_send_live(ports, windows * WINDOW_S, rate * 4))
            parts = [count.within(start + i * WINDOW_S) / (rate * WINDOW_S) for i in range(windows)]
            load = (len(count.admitted) + count.rejected) / (windows * rate * WINDOW_S)
            row = f"over HTTP: {what}, {load:.1f}-fold load"
            missed += report(row, "1 ± 0.05 of the quota", parts, is_within)
    return missed


async def _send_live(ports: list[int], seconds: float, rate: float) -> tuple[float, Count]:
    count = Count()
    async with AsyncExitStack() as stack:
        clients = []
        for port in ports:
            # There is no TLS here, and loading certificates takes long.
            client = httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", timeout=10, verify=False
            )
            clients.append(await stack.enter_async_context(client))
        start = monotonic()
        pause_s = len(ports) / rate
        await asyncio.gather(*(_client(each, start, seconds, pause_s, count) for each in clients))
    return start, count


async def _client(
    client: httpx.AsyncClient, start: float, seconds: float, pause_s: float, count: Count
) -> None:
    due = start + random.uniform(0, pause_s)
    while due < start + seconds:
        await asyncio.sleep(max(0.0, due - monotonic()))
        due = max(due + pause_s, monotonic())
        response = await client.post("/outcomes", json=OUTCOME, headers={"x-api-key": KEY})
        if response.status_code == 202:
            count.admitted.append(monotonic())
        elif response.status_code == 429:
            count.rejected += 1
        else:
            raise SystemExit(f"{response.status_code}: {response.text}")


# --- Redis ---------------------------------------------------------------------------------------


class Server:
    """A Redis without persistence, on its own port."""

    def __init__(self) -> None:
        self._port = free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            str(find_server(os.environ)), "--port", str(self._port), "--bind", "127.0.0.1",
            "--save", "", "--appendonly", "no",
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        # Wait until it listens; before that, its port looks free to other processes.
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            time.sleep(0.02)
        raise SystemExit("Redis did not start within 10 s")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@contextmanager
def valkey() -> Iterator[str]:
    with Server() as server:
        yield server.url
