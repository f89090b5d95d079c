"""An HTTP load generator, cheap enough to share two cores with the measured server.

Closed loop: each connection sends the next request once the last response is complete. Open loop
(`rate`): requests are due at random times (Poisson process), independent of the responses. Latency
counts from the due time, so that it includes stalls of the server. It runs in its own process:
`python -m bench.load < job` reads a `Job` as JSON and prints one line of JSON. Any status but 200
counts as an error. Responses must have a content-length.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from itertools import cycle
from typing import cast

import uvloop

WARM_UP_S = 0.5
# The maximum number of due requests that wait for a connection; more are dropped.
WAITING_MAX = 20_000
TURN_S = 0.001


@dataclass
class Job:
    """The load: `requests` in turn, as text of bytes 0 to 255; `rate` is per second."""

    port: int
    connections: int
    seconds: float
    requests: list[str]
    rate: float | None = None

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()


@dataclass
class Run:
    """The shared state of all connections of one run."""

    requests: cycle[bytes]
    latencies: list[float] = field(default_factory=list)
    errors: int = 0
    # Responses over the whole run, with the warm-up, to divide the servers' CPU time by.
    answered: int = 0
    counting: bool = False
    done: bool = False
    # Open loop only: the idle connections, and the due times of waiting requests.
    idle: list[Client] | None = None
    due: deque[float] = field(default_factory=deque)
    # Requests dropped because WAITING_MAX others were waiting.
    dropped: int = 0


class Client(asyncio.Protocol):
    """One connection. It records latencies in the shared run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.transport: asyncio.Transport | None = None
        # The response so far, and the due time of its request.
        self.buffer = b""
        self.due_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self.run.idle is None:
            self.send(time.perf_counter())
        else:
            self.run.idle.append(self)

    def send(self, due_at: float) -> None:
        assert self.transport is not None
        self.due_at = due_at
        self.transport.write(next(self.run.requests))

    def data_received(self, data: bytes) -> None:
        if self.buffer:
            data = self.buffer + data
        end = data.find(b"\r\n\r\n")
        if end < 0 or len(data) < end + 4 + _content_length(data[:end]):
            self.buffer = data
            return
        self.buffer = b""
        run = self.run
        run.answered += 1
        now = time.perf_counter()
        if run.counting:
            run.latencies.append(now - self.due_at)
            if data[9:12] != b"200":
                run.errors += 1
        if run.idle is None:
            if not run.done:
                self.send(now)
        elif run.due:
            self.send(run.due.popleft())
        else:
            run.idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.run.done:
            self.run.errors += 1


def _content_length(head: bytes) -> int:
    at = head.find(b"ontent-")
    while at >= 0:
        if head[at + 7 : at + 14].lower() == b"length:":
            return int(head[at + 14 :].split(b"\r\n", 1)[0])
        at = head.find(b"ontent-", at + 7)
    return 0


async def arrive(run: Run, rate: float) -> None:
    """Send requests when they are due; if no connection is idle, they wait with their due time."""
    draw = random.Random(0).expovariate
    due_at = time.perf_counter()
    assert run.idle is not None
    while not run.done:
        now = time.perf_counter()
        while due_at <= now:
            if run.idle:
                run.idle.pop().send(due_at)
            elif len(run.due) < WAITING_MAX:
                run.due.append(due_at)
            else:
                run.dropped += run.counting
            due_at += draw(rate)
        await asyncio.sleep(TURN_S)


async def measure(job: Job) -> dict[str, float]:
    """Return requests per second and latency percentiles in milliseconds."""
    loop = asyncio.get_running_loop()
    run = Run(cycle([text.encode("latin-1") for text in job.requests]))
    if job.rate is not None:
        run.idle = []
    for _ in range(job.connections):
        await loop.create_connection(lambda: Client(run), "127.0.0.1", job.port)
    arrivals = None if job.rate is None else loop.create_task(arrive(run, job.rate))
    await asyncio.sleep(WARM_UP_S)
    run.counting = True
    started_at = time.perf_counter()
    await asyncio.sleep(job.seconds)
    elapsed_s = time.perf_counter() - started_at
    run.counting = False
    # Due requests without a response count with the time that they have waited so far.
    late = [time.perf_counter() - due_at for due_at in run.due]
    run.done = True
    if arrivals is not None:
        await arrivals
    await asyncio.sleep(0.2)
    ordered = sorted([*run.latencies, *late]) or [0.0]
    return {
        "answered": max(1, run.answered),
        "per_second": len(run.latencies) / elapsed_s,
        "p50_ms": ordered[len(ordered) // 2] * 1000,
        "p95_ms": ordered[int(len(ordered) * 0.95)] * 1000,
        "p99_ms": ordered[int(len(ordered) * 0.99)] * 1000,
        "errors": run.errors + run.dropped,
    }


def main() -> None:
    job = Job(**json.loads(sys.stdin.buffer.read()))
    print(json.dumps(uvloop.run(measure(job))))


if __name__ == "__main__":
    main()
