"""Clients that send requests without a pause and count the responses in time.

Closed loop: each connection sends the next request as soon as it has a response, even a rejection.
It runs in its own process: `python -m bench.overload_load < job` reads a `Job` as JSON and prints
one line of JSON. Responses must have a content-length.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from itertools import cycle
from typing import cast

import uvloop

from bench import sleeper
from bench.load import _content_length


@dataclass
class Job:
    """The load: one row per request with the costs `costs_ms` in turn; times in seconds."""

    port: int
    path: str
    clients: int
    warm_up_s: float
    seconds: float
    within_s: float
    costs_ms: list[float]

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()


@dataclass
class Tally:
    """The counts of all clients: requests sent, responses in time, and responses by status.

    `work_ms` is the total cost of the rows answered in time.
    """

    sent: int = 0
    in_time: int = 0
    work_ms: float = 0.0
    statuses: dict[str, int] = field(default_factory=dict)


class Run:
    """The shared state of the clients of one run."""

    def __init__(self, job: Job) -> None:
        self.within_s = job.within_s
        bodies = [(cost_ms, sleeper.body(cost_ms)) for cost_ms in job.costs_ms]
        head = f"POST {job.path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        self.requests = cycle(
            [
                (cost_ms, f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
                for cost_ms, body in bodies
            ]
        )
        self.tally: Tally | None = None
        self.done = False


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.transport: asyncio.Transport | None = None
        # The response so far, the time its request was sent, and the cost of that.
        self.buffer = b""
        self.sent_at = 0.0
        self.cost_ms = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.send()

    def send(self) -> None:
        assert self.transport is not None
        if self.run.done:
            return
        self.cost_ms, request = next(self.run.requests)
        self.sent_at = time.perf_counter()
        if self.run.tally is not None:
            self.run.tally.sent += 1
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0 or len(self.buffer) < end + 4 + _content_length(self.buffer[:end]):
            return
        status, self.buffer = self.buffer[9:12].decode(), b""
        tally = self.run.tally
        if tally is not None:
            tally.statuses[status] = tally.statuses.get(status, 0) + 1
            if status == "200" and time.perf_counter() - self.sent_at <= self.run.within_s:
                tally.in_time += 1
                tally.work_ms += self.cost_ms
        self.send()


async def measure(job: Job) -> dict[str, object]:
    """Return the tally of one run and its duration."""
    loop = asyncio.get_running_loop()
    run = Run(job)
    clients = [
        (await loop.create_connection(lambda: Client(run), "127.0.0.1", job.port))[0]
        for _ in range(job.clients)
    ]
    await asyncio.sleep(job.warm_up_s)
    run.tally = tally = Tally()
    began_at = time.perf_counter()
    await asyncio.sleep(job.seconds)
    run.tally, run.done = None, True
    elapsed_s = time.perf_counter() - began_at
    for transport in clients:
        transport.abort()
    return {**asdict(tally), "elapsed_s": elapsed_s}


if __name__ == "__main__":
    json.dump(uvloop.run(measure(Job(**json.load(sys.stdin)))), sys.stdout)
