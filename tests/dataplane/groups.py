"""A whole instance of real processes, with a control plane and a model server on sockets."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec

from contract.routing import encode
from tests.dataplane.control import TOKEN, ControlSocket
from tests.dataplane.worlds import Upstream, body, canary, model, table, until

ROOT = Path(__file__).parents[2]
ROW = [1.0, 2.0, 3.0, 4.0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Group:
    """One instance: its processes, its address, its control plane and model server."""

    def __init__(self, valkey, folder, control, upstream, workers):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.control = control
        self.upstream = upstream
        self.process = None
        self.environment = {
            **os.environ,
            "INTERLOCK_BIND": f"127.0.0.1:{self.port}",
            "INTERLOCK_CONTROL_URL": control.url,
            "INTERLOCK_INSTANCE_TOKEN": "t",
            "INTERLOCK_INSTANCE_NAME": "dp",
            "INTERLOCK_STATE_DIR": str(folder / "state"),
            "INTERLOCK_WORKERS": str(workers),
            "INTERLOCK_OPERATOR_TOKEN": "pager",
            "INTERLOCK_POLL_INTERVAL_S": "0.1",
            "INTERLOCK_REPORT_INTERVAL_S": "0.1",
            "INTERLOCK_STOP_TIMEOUT_S": "5",
            "REDIS_URL": valkey.url,
        }

    async def start(self):
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "dataplane", cwd=ROOT, env=self.environment
        )
        await self.ready()

    async def ready(self):
        async with asyncio.timeout(120):
            while (await self.get("/v2/health/ready")).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def stop(self):
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            assert await asyncio.wait_for(self.process.wait(), 60) == 0

    async def get(self, path):
        """Send a request over a new connection, so that any worker may answer."""
        return await self._request("GET", path, headers=TOKEN)

    async def post(self, path, document):
        return await self._request("POST", path, json=document, headers=TOKEN)

    async def predict(self, unit="u"):
        headers = {"x-unit-id": unit}
        path = "/v2/models/sums/infer"
        return await self._request("POST", path, content=body(ROW), headers=headers)

    async def _request(self, method, path, **content):
        # Until a worker is ready, connections are refused.
        async with httpx.AsyncClient(base_url=self.url, timeout=20) as client:
            try:
                return await client.request(method, path, **content)
            except httpx.TransportError:
                return httpx.Response(599)

    def workers(self):
        """Return the processes of the workers, in the order of their slots."""
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        slots = {int(pid): _slot(pid) for pid in listed.split()}
        return sorted((pid for pid in slots if slots[pid] is not None), key=slots.get)

    async def metric(self, name):
        page = (await self.get("/metrics")).text
        return sum(float(x.rpartition(" ")[2]) for x in page.splitlines() if x.startswith(name))


def _slot(pid):
    """Return the slot of a worker; None for a dead process or one that is not yet a worker."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except FileNotFoundError:
        return None  # It was reaped after it was listed.
    return (int(command[3]), int(pid)) if command[1:3] == [b"-m", b"dataplane.worker"] else None


def kill(pid):
    os.kill(pid, signal.SIGKILL)


@asynccontextmanager
async def a_group(valkey, folder, workers=2, tenancy=None, **settings):
    """Run an instance; `tenancy` are fields of its table: tenants and what belongs to them."""
    async with Upstream() as upstream:
        routing_table = table(model(split=canary(10_000)), 7, (upstream.address,))
        data = encode(msgspec.structs.replace(routing_table, **tenancy or {}))
        async with ControlSocket(data) as control:
            group = Group(valkey, folder, control, upstream, workers)
            group.environment |= settings
            try:
                await group.start()
                await until(lambda: len({r.instance for r in control.reports}) == workers, 120)
                yield group
            finally:
                await group.stop()


class Load:
    """Clients, with new and with keep-alive connections; every failure is recorded."""

    def __init__(self, group):
        self.group = group
        self.answers = 0
        self.failures = []
        self._stopped = False

    async def run(self):
        await asyncio.gather(*(self._ask(fresh=n % 2 == 0) for n in range(6)))

    def stop(self):
        self._stopped = True

    async def _ask(self, *, fresh):
        client = httpx.AsyncClient(base_url=self.group.url, timeout=5)
        while not self._stopped:
            try:
                answer = await client.post("/v2/models/sums/infer", content=body(ROW))
                self.answers += 1
                if answer.status_code != 200:
                    self.failures.append(answer.text)
            except httpx.HTTPError as error:
                self.failures.append(repr(error))
            if fresh:
                await client.aclose()
                client = httpx.AsyncClient(base_url=self.group.url, timeout=5)
            await asyncio.sleep(0.002)
        await client.aclose()


@asynccontextmanager
async def under_load(group):
    load = Load(group)
    task = asyncio.create_task(load.run())
    await until(lambda: load.answers > 20)
    yield load
    load.stop()
    await task
