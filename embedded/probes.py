"""Readiness probes of servers; each returns what is missing, or "" if the server is ready."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

# On a busy machine a server's first response may take seconds.
PROBE_TIMEOUT_S = 10.0
REASON_CHARACTERS_MAX = 100

# Returns what is missing; "": the server is ready.
Probe = Callable[[], Awaitable[str]]


async def _exchange(port: int, request: bytes, lines: int = 1) -> bytes:
    """Return the first lines of a loopback server's response. Raises OSError, TimeoutError."""
    response = b""
    writer = None
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            while response.count(b"\r\n") < lines and (piece := await reader.read(1_024)):
                response += piece
            return response
    finally:
        if writer is not None:
            writer.close()


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no response within {PROBE_TIMEOUT_S:g} s"
    return "not listening yet" if isinstance(error, ConnectionRefusedError) else str(error)


def http_ok(port: int, path: str) -> Probe:
    """Return a probe: `GET path` on the loopback port responds with 200."""
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()

    async def probe() -> str:
        try:
            response = await _exchange(port, request)
        except (OSError, TimeoutError) as error:
            return f"{path}: {_reason(error)}"
        head, _, body = response.partition(b"\r\n\r\n")
        status = head.partition(b"\r\n")[0].partition(b" ")[2]
        if status.startswith(b"200"):
            return ""
        text = (body or status).decode("utf-8", "replace").strip().replace("\n", " ")
        return f"{path}: {text[:REASON_CHARACTERS_MAX] or 'no response'}"

    return probe


def redis_pong(port: int, password: str) -> Probe:
    """Return a probe: Redis responds to PING (with -LOADING while it reads its file)."""

    async def probe() -> str:
        try:
            response = await _exchange(port, f"AUTH {password}\r\nPING\r\n".encode(), lines=2)
        except (OSError, TimeoutError) as error:
            return f"PING: {_reason(error)}"
        lines = response.decode("utf-8", "replace").split("\r\n")
        if "+PONG" in lines:
            return ""
        refusal = next((line for line in lines if line.startswith("-")), "")
        return f"PING: {refusal or 'no response'}"

    return probe
