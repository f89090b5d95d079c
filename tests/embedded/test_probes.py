from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from embedded.probes import Probe, http_ok, redis_pong


async def asked(probe_of_port: Callable[[int], Probe], answer: bytes) -> bool:
    """What a probe makes of a server that gives this answer."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(64)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        probe = probe_of_port(server.sockets[0].getsockname()[1])
        return await probe()


@pytest.mark.parametrize(
    ("answer", "ready"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", True),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", False),
        (b"HTTP/1.1 404 Not 200\r\n\r\n", False),
        (b"", False),
    ],
)
async def test_an_http_server_is_ready_when_it_answers_200(answer: bytes, ready: bool) -> None:
    assert await asked(lambda port: http_ok(port, "/ready"), answer) is ready


@pytest.mark.parametrize(
    ("answer", "ready"),
    [(b"+PONG\r\n", True), (b"-LOADING Redis is loading the dataset in memory\r\n", False)],
)
async def test_redis_is_ready_when_it_answers_ping(answer: bytes, ready: bool) -> None:
    assert await asked(redis_pong, answer) is ready


async def test_a_server_that_is_not_there_is_not_ready() -> None:
    assert await http_ok(1, "/")() is False
