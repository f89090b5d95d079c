"""Questions asked of a starting server. Each answers false for "not yet" and never raises."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

PROBE_TIMEOUT_S = 2.0

Probe = Callable[[], Awaitable[bool]]


async def _exchange(port: int, request: bytes) -> bytes:
    """The first bytes of a loopback server's answer, or nothing."""
    writer = None
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            return await reader.read(512)
    except (OSError, TimeoutError):
        return b""
    finally:
        if writer is not None:
            writer.close()


def http_ok(port: int, path: str) -> Probe:
    """Whether `GET path` on the loopback port answers 200."""
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()

    async def probe() -> bool:
        status_line = (await _exchange(port, request)).partition(b"\r\n")[0]
        return status_line.split(b" ")[1:2] == [b"200"]

    return probe


def redis_pong(port: int) -> Probe:
    """Whether a Redis server answers PING (it answers -LOADING while it reads its file)."""

    async def probe() -> bool:
        return (await _exchange(port, b"PING\r\n")).startswith(b"+PONG")

    return probe
