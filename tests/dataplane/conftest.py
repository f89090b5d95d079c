"""A real Redis-compatible server for the tests that need one."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import pytest

from embedded.valkey import find_server

# Keeps gRPC's poller alive between tests. Otherwise the last server to be garbage collected ends it
# from a finalizer, which once blocked for ever.
grpc.aio.init_grpc_aio()


class Valkey:
    """A server on a port of its own, which can be stopped and started again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        command = [
            str(find_server(os.environ)), "--port", str(self.port), "--bind", "127.0.0.1",
            "--save", "", "--dir", str(self._directory),
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.01)
        raise AssertionError("the server did not start")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    server = Valkey(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def even(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose endpoints at random only: a busy machine makes some look slow."""
    monkeypatch.setattr("dataplane.triton.group.CLEARLY", 1e9)
