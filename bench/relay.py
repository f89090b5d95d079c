"""A process that only forwards bytes in both directions, to measure the cost of a hop."""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop


class Side(asyncio.Protocol):
    """One of the two connections of a pair; it forwards received bytes to the other."""

    def __init__(self, upstream_port: int | None) -> None:
        # The port to connect to for a new client; None on the side of the server.
        self.upstream_port = upstream_port
        self.transport: asyncio.Transport | None = None
        self.other: Side | None = None
        self.early: list[bytes] = []
        self.opening: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self.upstream_port is not None:
            self.opening = asyncio.get_running_loop().create_task(self.connect(self.upstream_port))

    async def connect(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        _, other = await loop.create_connection(lambda: Side(None), "127.0.0.1", port)
        self.other, other.other = other, self
        assert other.transport is not None
        other.transport.writelines(self.early)

    def data_received(self, data: bytes) -> None:
        if self.other is None or self.other.transport is None:
            self.early.append(data)
        else:
            self.other.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


async def serve(port: int, upstream_port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Side(upstream_port), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2])))
