from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from embedded.probes import Probe, http_ok, redis_pong


async def run_probe(probe_of_port: Callable[[int], Probe], response: bytes) -> str:
    """Return the result of a probe of a server that sends `response`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(64)
        writer.write(response)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        probe = probe_of_port(server.sockets[0].getsockname()[1])
        return await probe()


@pytest.mark.parametrize(
    ("response", "missing"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", ""),
        (b"HTTP/1.1 503 No\r\n\r\nno table has arrived", "/ready: no table has arrived"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "/ready: 503 Service Unavailable"),
        (b"HTTP/1.1 404 Not 200\r\n\r\n", "/ready: 404 Not 200"),
        (b"", "/ready: no response"),
    ],
)
async def test_an_http_server_is_ready_when_it_answers_200(response: bytes, missing: str) -> None:
    assert await run_probe(lambda port: http_ok(port, "/ready"), response) == missing


@pytest.mark.parametrize(
    ("response", "missing"),
    [
        (b"+OK\r\n+PONG\r\n", ""),
        (b"+OK\r\n-LOADING the dataset\r\n", "PING: -LOADING the dataset"),
        (b"-WRONGPASS invalid\r\n-NOAUTH\r\n", "PING: -WRONGPASS invalid"),
        (b"", "PING: no response"),
    ],
)
async def test_redis_is_ready_when_it_answers_ping(response: bytes, missing: str) -> None:
    assert await run_probe(lambda port: redis_pong(port, "pw"), response) == missing


async def test_a_missing_server_is_not_ready() -> None:
    assert await http_ok(1, "/")() == "/: not listening yet"
