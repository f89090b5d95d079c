"""Additional data planes, a fake control plane for them, and a slow proxy to Triton."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from email.utils import parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from contract.messages import InstanceReport, decode_report
from contract.routing import (
    Batching,
    CanarySplit,
    Cluster,
    ModelRoute,
    RoutingTable,
    VersionRoute,
    encode,
)
from embedded.state import ROOT
from tests.faults.artifact import SIGNATURE
from tests.faults.ground import SETTINGS, Ground, wait_until

MODEL = "petals"
# Python imports `sitecustomize` at its start; this one shifts the clock of the instance and its
# workers.
WRONG_CLOCK = """
import time
real = time.time
time.time = lambda: real() + {shift_s}
"""


def table(
    generation: int,
    *endpoints: str,
    canary_on: tuple[str, ...] = (),
    version: str = "1",
    hedge_after_ms: int | None = None,
) -> RoutingTable:
    """Return a table with one model: stable on `endpoints`, and a 50 % canary on `canary_on`."""
    versions = {version: _version("main", version)}
    clusters = {"main": Cluster(endpoints=endpoints, hedge_after_ms=hedge_after_ms)}
    split = None
    if canary_on:
        versions["2"] = _version("other", "2")
        clusters["other"] = Cluster(endpoints=canary_on)
        split = CanarySplit(id="r", salt="s", version="2", weight_bp=5_000)
    model = ModelRoute(
        signature=SIGNATURE, stable=version, versions=versions, split=split, batching=Batching()
    )
    return RoutingTable(generation=generation, models={MODEL: model}, clusters=clusters)


def _version(cluster: str, number: str) -> VersionRoute:
    return VersionRoute(cluster=cluster, triton_model=f"flowers.{number}", triton_version=number)


class FakeControl:
    """A control plane with the two endpoints of a data plane and a configurable document."""

    def __init__(self) -> None:
        self.document = b""
        self.reports: list[InstanceReport] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        """Stop the server; a second call has no effect."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def publish(self, table: RoutingTable) -> None:
        self.document = encode(table)

    def wait_for_ack(self, generation: int) -> None:
        wait_until(
            lambda: (
                self.reports
                and self.reports[-1].applied_generation == generation
                and self.reports[-1].refusal is None
            ),
            10,
            f"generation {generation} is applied",
        )

    def wait_for_refusal(self, word: str) -> InstanceReport:
        """Wait for a report of a refused table with `word` in the reason; return it."""
        wait_until(lambda: word in (self.reports[-1].refusal or ""), 10, f"a refusal with {word!r}")
        return self.reports[-1]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        control = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(200, control.document)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                control.reports.append(decode_report(body))
                self._answer(204, b"")

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                with suppress(ConnectionError):
                    self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


class Plane:
    """One data-plane process; `start` may be called again on the same directory after `kill`."""

    def __init__(
        self, ground: Ground, directory: Path, control_url: str, name: str, clock_shift_s: float = 0
    ) -> None:
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._command = [sys.executable, "-m", "dataplane"]
        token = ground.token_of(name) if control_url == ground.stack.urls.web else "none"
        clock = directory / f"{name}-clock"
        clock.mkdir()
        (clock / "sitecustomize.py").write_text(WRONG_CLOCK.format(shift_s=clock_shift_s))
        self._env = {
            **ground.stack.env,
            **SETTINGS,
            "INTERLOCK_POLL_INTERVAL_S": "0.1",
            "INTERLOCK_REPORT_INTERVAL_S": "0.2",
            "INTERLOCK_BIND": f"127.0.0.1:{self.port}",
            "INTERLOCK_CONTROL_URL": control_url,
            "INTERLOCK_INSTANCE_NAME": name,
            "INTERLOCK_INSTANCE_TOKEN": token,
            "INTERLOCK_STATE_DIR": str(directory / name),
            "INTERLOCK_WORKERS": "1",
            "PYTHONPATH": str(clock),
        }

    def start(self) -> float:
        """Start the process; return the seconds until it was ready."""
        self.process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=self._env,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return wait_until(self._is_ready, 20, "the data plane is ready")

    def _is_ready(self) -> bool:
        url = f"http://127.0.0.1:{self.port}/v2/health/ready"
        return httpx.get(url).status_code == 200

    def clock_shift_s(self) -> float:
        """Return the seconds by which the data plane's clock is ahead of this process's."""
        date = httpx.get(f"http://127.0.0.1:{self.port}/v2/health/live").headers["date"]
        return parsedate_to_datetime(date).timestamp() - time.time()

    def kill(self) -> None:
        """Send SIGKILL to the process and its workers, as when a container is killed."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """Stop the process in order, so that it tells the control plane."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(20)


@contextmanager
def misled(ground: Ground, directory: Path, first: RoutingTable) -> Iterator[tuple[Any, Any]]:
    """Run a data plane with a fake control plane that has published `first`."""
    with closing(FakeControl()) as control:
        control.publish(first)
        plane = Plane(ground, directory, control.url, "misled")
        with closing(plane):
            plane.start()
            yield control, plane


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class SlowWay:
    """A TCP proxy that delays a server's responses by `delay_s`, which may change at any time."""

    def __init__(self, target: str) -> None:
        self.delay_s = 0.0
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.address = ""
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._ready.wait(5)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        there_reader, there_writer = await asyncio.open_connection(self._host, self._port)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._copy(reader, there_writer, late=False))
                both.create_task(self._copy(there_reader, writer, late=True))
        except* (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            there_writer.close()

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, late: bool
    ) -> None:
        while data := await reader.read(65_536):
            if late and self.delay_s:
                await asyncio.sleep(self.delay_s)
            writer.write(data)
            await writer.drain()
        writer.close()
