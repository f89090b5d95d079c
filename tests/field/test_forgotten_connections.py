"""A middlebox silently drops the state of connections between a burst and the next call."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from dataplane.triton import idle
from tests.dataplane.test_triton_connections import burst, call, failures, triton
from tests.dataplane.worlds import Upstream


class Middlebox:
    """A proxy that forwards bytes until `forget`, and then silently discards them."""

    def __init__(self, port):
        self.port = port
        self.connections = 0
        self.generation = 0
        self.address = ""

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self._server.close()

    def forget(self):
        self.generation += 1

    async def _pass(self, reader, writer):
        self.connections += 1
        generation = self.generation
        ahead, behind = await asyncio.open_connection("127.0.0.1", self.port)

        async def one_way(source, sink):
            while data := await source.read(65_536):
                if generation == self.generation:
                    sink.write(data)
            sink.close()

        await asyncio.gather(one_way(reader, behind), one_way(ahead, writer))


@asynccontextmanager
async def forgetful():
    async with Upstream() as upstream, Middlebox(upstream.address.rpartition(":")[2]) as box:
        yield upstream, box


@pytest.mark.parametrize("together", [True, False])
async def test_at_most_one_call_fails_after_connections_were_dropped(together, monkeypatch):
    # For any length of the pause.
    monkeypatch.setattr(idle, "TRUSTED_S", 0.0)
    async with forgetful() as (_, box), triton() as client:
        assert failures(await burst(client, box.address)) == []
        box.forget()
        if together:
            results = await burst(client, box.address)
        else:
            results = [await call(client, box.address, 0.3) for _ in range(8)]
        assert len(failures(results)) <= 1
        assert failures(await burst(client, box.address)) == []
