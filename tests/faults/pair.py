"""Two Tritons with the same version, and a data plane in front of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from bench import flowers
from bench.testbed import data_plane
from contract.routing import Cluster, ModelRoute, RoutingTable, VersionRoute, encode
from embedded.stack import Stack, running
from embedded.triton import CONTROL_HEADER
from tests.faults.ground import processes, wait_until

MODEL = "flowers"
TRITON_MODEL = "flowers.1"
# Short times, so that tests do not wait long.
SETTINGS = {
    "INTERLOCK_OPERATOR_TOKEN": "pager",
    "INTERLOCK_EJECT_S": "1",
    "INTERLOCK_EJECT_MAX_S": "2",
    "INTERLOCK_STOP_TIMEOUT_S": "1",
    "INTERLOCK_LAME_DUCK_S": "0.1",
    # Each worker learns by itself which replicas are healthy, and by default there are several.
    "INTERLOCK_WORKERS": "1",
}


class Server:
    """One of the two Tritons."""

    def __init__(self, stack: Stack) -> None:
        self.address = f"127.0.0.1:{stack.ports['triton_http']}"
        self._supervisor = stack.pid
        self._token = {CONTROL_HEADER: stack.triton_token}

    def pid(self) -> int:
        """Return the server's own pid."""
        children = processes(self._supervisor)
        return next(pid for pid, command in children.items() if "/tritonserver" in command)

    def stub(self) -> int:
        """Return the pid of the process that computes the version."""
        children = processes(self.pid())
        return next(pid for pid, command in children.items() if "python_backend_stub" in command)

    def answered(self) -> int:
        """Return the number of calls that the version has answered on this server."""
        url = f"http://{self.address}/v2/models/{TRITON_MODEL}/stats"
        (stats,) = httpx.get(url).raise_for_status().json()["model_stats"]
        return int(stats["inference_stats"]["success"]["count"])

    def says_ready(self) -> bool:
        """Return whether Triton reports the version as ready."""
        url = f"http://{self.address}/v2/models/{TRITON_MODEL}/versions/1/ready"
        return httpx.get(url).status_code == 200

    def reload(self) -> None:
        """Unload the version and load it again, as the control plane heals it."""
        for verb in ("unload", "load"):
            url = f"http://{self.address}/v2/repository/models/{TRITON_MODEL}/{verb}"
            httpx.post(url, headers=self._token, timeout=30).raise_for_status()

    def wait_for_traffic(self, within_s: float) -> None:
        """Wait until the version is ready and gets requests on this server."""
        wait_until(self.says_ready, within_s, f"{self.address} is ready")
        before = self.answered()
        wait_until(lambda: self.answered() > before + 20, within_s, f"{self.address} gets requests")


class Pair:
    """The two Tritons and the port of the data plane."""

    def __init__(self, one: Server, two: Server, port: int) -> None:
        self.one = one
        self.two = two
        self.port = port

    def open_circuits(self) -> list[str]:
        """Return the lines of `/metrics` about circuits that are not closed."""
        headers = {"authorization": "Bearer pager"}
        lines = httpx.get(
            f"http://127.0.0.1:{self.port}/metrics", headers=headers
        ).text.splitlines()
        return [line for line in lines if line.startswith("interlock_circuit_state{")]


@contextmanager
def pair(directory: Path) -> Iterator[Pair]:
    """Run two Tritons and a data plane."""
    with ExitStack() as stack:
        servers = []
        for name in ("one", "two"):
            flowers.write(directory / name / "triton" / "repository", TRITON_MODEL)
            servers.append(Server(stack.enter_context(running(directory / name, only={"triton"}))))
        document = encode(_table(*(server.address for server in servers)))
        plane = stack.enter_context(
            data_plane(directory / "plane", document, "redis://127.0.0.1:9/0", **SETTINGS)
        )
        yield Pair(*servers, plane.port)
        # Killed, as an orderly stop would take seconds.
        for server in servers:
            os.kill(server.pid(), signal.SIGKILL)


def _table(*endpoints: str) -> RoutingTable:
    version = VersionRoute(cluster="main", triton_model=TRITON_MODEL, triton_version="1")
    model = ModelRoute(signature=flowers.signature(4), stable="1", versions={"1": version})
    return RoutingTable(
        generation=1, models={MODEL: model}, clusters={"main": Cluster(endpoints=endpoints)}
    )
