"""A closed-loop HTTP load generator, cheap enough to share two cores with what it measures.

Each connection sends the next request when the answer to the last one is whole. It runs as a
process of its own: `python -m bench.load PORT CONNECTIONS SECONDS < request-body`, and prints one
line of JSON. Answers must be JSON with content-length; anything but a 200 counts as an error.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import cast

import uvloop

WARM_UP_S = 0.5


class Client(asyncio.Protocol):
    """One connection; latencies go to a list that all of them share."""

    def __init__(self, request: bytes, run: Run) -> None:
        self.request = request
        self.run = run
        self.transport: asyncio.Transport | None = None
        # The answer so far, and how long it will be once its head is whole.
        self.buffer = b""
        self.sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.send()

    def send(self) -> None:
        assert self.transport is not None
        self.sent_at = time.perf_counter()
        self.transport.write(self.request)

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
        if run.counting:
            run.latencies.append(time.perf_counter() - self.sent_at)
            if data[9:12] != b"200":
                run.errors += 1
        if not run.done:
            self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.run.done:
            self.run.errors += 1


class Run:
    """What all connections of one run share."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.errors = 0
        # Answers over the whole run, the warm-up included: what the CPU of the servers went to.
        self.answered = 0
        self.counting = False
        self.done = False


def _content_length(head: bytes) -> int:
    at = head.find(b"ontent-")
    while at >= 0:
        if head[at + 7 : at + 14].lower() == b"length:":
            return int(head[at + 14 :].split(b"\r\n", 1)[0])
        at = head.find(b"ontent-", at + 7)
    return 0


async def measure(port: int, request: bytes, connections: int, seconds: float) -> dict[str, float]:
    """Return requests a second and latency percentiles in milliseconds."""
    loop = asyncio.get_running_loop()
    run = Run()
    for _ in range(connections):
        await loop.create_connection(lambda: Client(request, run), "127.0.0.1", port)
    await asyncio.sleep(WARM_UP_S)
    run.counting = True
    started_at = time.perf_counter()
    await asyncio.sleep(seconds)
    elapsed_s = time.perf_counter() - started_at
    run.counting = False
    run.done = True
    await asyncio.sleep(0.2)
    ordered = sorted(run.latencies) or [0.0]
    return {
        "answered": max(1, run.answered),
        "per_second": len(run.latencies) / elapsed_s,
        "p50_ms": ordered[len(ordered) // 2] * 1000,
        "p95_ms": ordered[int(len(ordered) * 0.95)] * 1000,
        "p99_ms": ordered[int(len(ordered) * 0.99)] * 1000,
        "errors": run.errors,
    }


def main() -> None:
    port, connections, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    request = sys.stdin.buffer.read()
    print(json.dumps(uvloop.run(measure(port, request, connections, seconds))))


if __name__ == "__main__":
    main()
