from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from embedded.probes import Probe, http_ok, redis_pong


async def asked(probe_of_port: Callable[[int], Probe], answer: bytes) -> str:
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
    ("answer", "missing"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", ""),
        (b"HTTP/1.1 503 No\r\n\r\nno table has arrived", "/ready: no table has arrived"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "/ready: 503 Service Unavailable"),
        (b"HTTP/1.1 404 Not 200\r\n\r\n", "/ready: 404 Not 200"),
        (b"", "/ready: no answer"),
    ],
)
async def test_an_http_server_is_ready_when_it_answers_200(answer: bytes, missing: str) -> None:
    assert await asked(lambda port: http_ok(port, "/ready"), answer) == missing


@pytest.mark.parametrize(
    ("answer", "missing"),
    [
        (b"+OK\r\n+PONG\r\n", ""),
        (b"+OK\r\n-LOADING the dataset\r\n", "PING: -LOADING the dataset"),
        (b"-WRONGPASS invalid\r\n-NOAUTH\r\n", "PING: -WRONGPASS invalid"),
        (b"", "PING: no answer"),
    ],
)
async def test_redis_is_ready_when_it_answers_ping(answer: bytes, missing: str) -> None:
    assert await asked(lambda port: redis_pong(port, "pw"), answer) == missing


async def test_a_server_that_is_not_there_is_not_ready() -> None:
    assert await http_ok(1, "/")() == "/: nobody listens yet"
