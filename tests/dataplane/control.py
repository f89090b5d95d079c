"""Minimal control planes for the data plane, and fixtures that use them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import httpx
import msgspec
import redis.asyncio as redis
from msgspec.structs import replace

from contract.deltas import MEDIA_TYPE, make_delta
from contract.messages import decode_report
from contract.routing import encode
from dataplane.config import Config, Group
from dataplane.instance import Instance
from dataplane.serving import Serving
from dataplane.sync import REPORT_PATH, TABLE_PATH, Sync
from dataplane.table_reader import TableFile
from dataplane.telemetry import Telemetry
from dataplane.triton import Triton
from tests.dataplane.worlds import EXPERIMENT, Upstream, model, table, until

HEAD = b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n"


class ControlSocket:
    """A control plane on a socket: it serves one table and records the reports."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reports = []
        self.tokens = set()
        self.url = ""
        self._server = None
        self._writers = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        """Close every connection: a socket that stays open fails a later test."""
        self._server.close()
        writers = list(self._writers)
        for writer in writers:
            writer.close()
        await asyncio.gather(*(each.wait_closed() for each in writers), return_exceptions=True)

    async def serve(self, reader, writer):
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                lines = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
                self.tokens.add(lines["authorization"])
                content = await reader.readexactly(int(lines.get("content-length", 0)))
                if head.startswith("post"):
                    self.reports.append(decode_report(content))
                    writer.write(HEAD % (204, 0))
                else:
                    writer.write(HEAD % (200, len(self.data)) + self.data)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self._writers.discard(writer)


# The token for an instance's metrics.
TOKEN = {"authorization": "Bearer pager"}


@asynccontextmanager
async def an_instance(valkey, folder, data=None, metrics=None, **changes):
    """Run a whole instance with a control plane, a Redis and an upstream."""
    async with Upstream() as upstream:
        route = model(split=EXPERIMENT, **changes)
        ours = replace(table(route, 7, (upstream.address,)), metrics=metrics)
        async with ControlSocket(data or encode(ours)) as control:
            config = Config(
                bind=("127.0.0.1", 0), control_url=control.url, instance_token="t",
                instance_name="dp", state_dir=folder / "state", redis_url=valkey.url,
                poll_interval_s=0.05, report_interval_s=0.05, telemetry_interval_s=0.05,
                stop_timeout_s=3.0, group=Group(operator_token="pager"),
            )  # fmt: skip
            instance = Instance(config, asyncio.get_running_loop())
            port = await instance.start()
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                yield instance, client, control, upstream
            await instance.stop()


async def applied(instance):
    """Wait for the table of `an_instance`."""
    await until(lambda: instance.serving.generation == 7)


class Control:
    """Answers as the control plane."""

    def __init__(self):
        self.data = b""
        self.status = 200
        self.pulls = []
        self.sends_deltas = False
        self.previous = b""
        self.deltas = 0
        self.reports = []

    def __call__(self, request):
        if request.url.path == REPORT_PATH:
            self.reports.append(decode_report(request.content))
            return httpx.Response(204)
        assert request.url.path == TABLE_PATH
        self.pulls.append(request.headers.get("if-none-match"))
        etag = f'"{hash(self.data)}"'
        if self.status != 200:
            return httpx.Response(self.status)
        if self.pulls[-1] == etag:
            return httpx.Response(304)
        if self.sends_deltas and self.pulls[-1] and MEDIA_TYPE in request.headers["accept"]:
            self.deltas += 1
            delta = make_delta("base", self.previous, self.data)
            return httpx.Response(
                200, content=delta, headers={"etag": etag, "content-type": MEDIA_TYPE}
            )
        return httpx.Response(200, content=self.data, headers={"etag": etag})

    def publish(self, generation, *endpoints, **changes):
        self.data = encode(table(model(**changes), generation, endpoints))

    def publish_many(self, generation, address, *names, **changes):
        """Publish several models; deltas start from the previous table."""
        self.previous = self.data
        one = table(model(**changes), generation, (address,))
        (route,) = one.models.values()
        self.data = encode(msgspec.structs.replace(one, models=dict.fromkeys(names, route)))

    def publish_created(self, generation, *endpoints, created_at_ms):
        """Publish versions with this registration time."""
        route = model()
        versions = {
            number: msgspec.structs.replace(version, created_at_ms=created_at_ms)
            for number, version in route.versions.items()
        }
        route = msgspec.structs.replace(route, versions=versions)
        self.data = encode(table(route, generation, endpoints))


@asynccontextmanager
async def syncing(folder, redis_url="redis://127.0.0.1:1/0", poll_interval_s=30.0):
    """Yield a Sync, its control plane, its serving, and an upstream."""
    loop = asyncio.get_running_loop()
    triton = Triton(loop)
    serving = Serving(triton, Telemetry(lambda: 0.0), loop, 4)
    control = Control()
    client = redis.Redis.from_url(redis_url, socket_connect_timeout=1)
    http = httpx.AsyncClient(base_url="http://control", transport=httpx.MockTransport(control))
    sync = Sync(
        serving, triton, http, client, TableFile(folder / "table.json"),
        instance="dp", boot="b1", dropped=lambda: {"s": 2},
        poll_interval_s=poll_interval_s, report_interval_s=30.0,
    )  # fmt: skip
    async with Upstream() as upstream:
        yield sync, control, serving, upstream
    triton.close()
    await http.aclose()
    await client.aclose()


async def refusal(sync, control):
    """Return the refusal in the next report."""
    await sync.report()
    report = control.reports[-1]
    return report.refused_generation, report.refusal
