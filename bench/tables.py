"""Measures the cost of large routing tables, and the time until a published table serves requests.

A minimal control plane publishes tables to one instance over HTTP and a real Redis. To observe
stalls of the instance's event loop, a client sends requests on one connection without a pause while
tables are applied; the longest response shows the longest stall.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median

import httpx
import redis

from bench.dataplane import measure, ratio
from bench.testbed import (
    KEY,
    Process,
    Target,
    data_plane,
    machine,
    resident_mb,
    table,
    write_models,
)
from contract.routing import CHANNEL
from embedded.stack import running

BIG = 10_000
CHANGES = 50


class Publisher:
    """A minimal control plane: serves the newest table, and wakes the instance."""

    def __init__(self, redis_url: str) -> None:
        self.document = b""
        self.etag = ""
        self._redis = redis.Redis.from_url(redis_url)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # With Nagle's algorithm a body would wait until its head is acknowledged.
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                if self.headers.get("if-none-match") == outer.etag:
                    self.answer(304, b"")
                else:
                    self.answer(200, outer.document)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                self.answer(200, b"{}")

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("etag", outer.etag)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def publish(self, document: bytes, generation: int) -> None:
        self.document, self.etag = document, f'"{generation}"'
        self._redis.publish(CHANNEL, str(generation))


class HealthProbe:
    """Requests the health page on one connection without a pause, in its own process."""

    def __init__(self, port: int) -> None:
        self._done = multiprocessing.Event()
        self._times_ms: multiprocessing.Queue[list[float]] = multiprocessing.Queue()
        self._process = multiprocessing.Process(target=self._run, args=(port,), daemon=True)
        self._process.start()

    def _run(self, port: int) -> None:
        times_ms: list[float] = []
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            while not self._done.is_set():
                started_at = time.perf_counter()
                client.get("/v2/health/live")
                times_ms.append((time.perf_counter() - started_at) * 1000)
        self._times_ms.put(times_ms)

    def stop(self) -> list[float]:
        """Return the times of all responses, sorted."""
        self._done.set()
        times_ms = sorted(self._times_ms.get())
        self._process.join()
        return times_ms


def main() -> None:
    """Print the cost of tables with 10, 1,000 and 10,000 models."""
    parser = argparse.ArgumentParser(prog="bench tables")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args(sys.argv[2:])
    print(f"{machine()}; medians of {options.rounds} rounds")
    with ExitStack() as exits:
        state = Path(exits.enter_context(tempfile.TemporaryDirectory()))
        write_models(state / "triton" / "repository")
        stack = exits.enter_context(running(state, {"redis", "triton"}))
        triton = stack.ports["triton_http"]
        planes = {}
        for others in (10, 1_000, BIG):
            publisher = Publisher(stack.redis_url)
            publisher.publish(table(triton, others), 1)
            process = exits.enter_context(
                data_plane(
                    state / f"dp{others}", table(triton, others), stack.redis_url, publisher.url
                )
            )
            planes[others] = (process, publisher)
        print_throughput(planes, options)
        print_changes(planes, triton)


Planes = dict[int, tuple[Process, Publisher]]


def print_throughput(planes: Planes, options: argparse.Namespace) -> None:
    """Print requests per second and memory by table size."""
    targets = [
        Target(str(others), process.port, "/v2/models/plain/infer", process.pids)
        for others, (process, _) in planes.items()
    ]
    samples = measure(targets, 64, options)
    print("\n### Models in the table, 64 connections to one of them\n")
    print("| models | requests/s | × 10 models | own µs | resident MB of a worker |")
    print("| --- " * 5 + "|")
    for others, (process, _) in planes.items():
        rows = samples[str(others)]
        cells = [
            f"{others:,}",
            f"{median(row.per_second for row in rows):,.0f}",
            ratio(rows, samples["10"], "per_second"),
            f"{median(row.own_us for row in rows):.1f}",
            f"{max(map(resident_mb, process.pids)):.0f}",
        ]
        print(f"| {' | '.join(cells)} |")
    sys.stdout.flush()


def print_changes(planes: Planes, triton: int) -> None:
    """Print the time until published tables serve requests, and the stalls of the event loop."""
    print(f"\n### {CHANGES} published tables, one change each\n")
    print("| models | table MB | published → next request, p50 ms | p99 ms | other responses "
          "meanwhile, p99.9 ms | at rest | longest meanwhile, ms | at rest |")  # fmt: skip
    print("| --- " * 8 + "|")
    for others, (process, publisher) in planes.items():
        probe = HealthProbe(process.port)
        time.sleep(5.0)
        calm = probe.stop()
        documents = [table(triton, others, generation) for generation in range(2, 2 + CHANGES)]
        probe = HealthProbe(process.port)
        delays = sorted(
            publish_and_wait(process.port, publisher, document, generation)
            for generation, document in enumerate(documents, 2)
        )
        busy = probe.stop()
        cells = [
            f"{others:,}",
            f"{len(documents[0]) / 1e6:.2f}",
            f"{delays[len(delays) // 2]:.1f}",
            f"{delays[int(len(delays) * 0.99)]:.1f}",
            *(f"{times[int(len(times) * 0.999)]:.1f}" for times in (busy, calm)),
            *(f"{times[-1]:.1f}" for times in (busy, calm)),
        ]
        print(f"| {' | '.join(cells)} |")
        sys.stdout.flush()


def publish_and_wait(port: int, publisher: Publisher, document: bytes, generation: int) -> float:
    """Publish a table; return the milliseconds until a prediction has its generation."""
    path = "/v2/models/plain/infer"
    request = {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 4],
                           "data": [5.1, 3.5, 1.4, 0.2]}]}  # fmt: skip
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"x-api-key": KEY}) as client:
        client.get("/v2/health/live")
        started_at = time.perf_counter()
        publisher.publish(document, generation)
        while True:
            response = client.post(path, json=request)
            response.raise_for_status()
            if int(response.headers["x-interlock-generation"]) == generation:
                return (time.perf_counter() - started_at) * 1000


if __name__ == "__main__":
    main()
