"""Helpers of the tests of the transport: calls, answers, and several upstreams at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from contract.routing import Breaker
from dataplane.config import Transport
from dataplane.triton import Replicas, Reply, Triton, TritonError
from tests.dataplane.worlds import Upstream

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
REQUEST = b"POST /x/infer HTTP/1.1\r\nhost: t\r\ncontent-length: 2\r\n\r\nab"


def answer(status: int, message: str) -> bytes:
    """Return an error in Triton's format."""
    body = b'{"error":"%b"}' % message.encode()
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


STUB_DEAD = answer(500, "Failed to process the request: Stub process 'x_0' is not healthy.")
FAULTY = answer(500, "division by zero")
NOT_LOADED = answer(404, "Request for unknown model")


@asynccontextmanager
async def transport(connections_max: int = 16, **changes: Any) -> AsyncIterator[Triton]:
    """Yield a transport with these settings."""
    triton = Triton(asyncio.get_running_loop(), connections_max, Transport(**changes))
    try:
        yield triton
    finally:
        triton.close()
        await asyncio.sleep(0)


@asynccontextmanager
async def upstreams(count: int) -> AsyncIterator[list[Upstream]]:
    """Yield `count` servers, each of which answers `ok`."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(Upstream()) for _ in range(count)]
        for server in servers:
            server.always = OK
            # Compared with this, noise of the machine makes no endpoint look slower than the
            # others.
            server.delay_s = 0.002
        yield servers


def replicas_on(
    servers: list[Upstream],
    trips: list[str] | None = None,
    hedge_after_ms: int | None = None,
    open_ms: int = 50,
) -> Replicas:
    """Return the replicas of a version on these servers."""
    return Replicas(
        tuple(server.address for server in servers),
        Breaker(window=20, failures=10, open_ms=open_ms),
        trips.append if trips is not None else None,
        hedge_after_ms,
    )


async def ask(triton: Triton, target: Any, timeout_s: float = 2.0) -> Reply | TritonError:
    """Post a small request and return the result."""
    done: asyncio.Future[Reply | TritonError] = asyncio.get_running_loop().create_future()
    triton.post(target, REQUEST, timeout_s, done.set_result)
    return await done


async def ask_often(
    triton: Triton, target: Any, count: int, timeout_s: float = 2.0
) -> list[Reply | TritonError]:
    """Send requests one after the other."""
    return [await ask(triton, target, timeout_s) for _ in range(count)]


async def ask_at_once(triton: Triton, target: Any, count: int) -> list[Reply | TritonError]:
    return await asyncio.gather(*[ask(triton, target) for _ in range(count)])


def endpoint(triton: Triton, server: Upstream) -> Any:
    """Return the transport's endpoint of a server."""
    return next(item for item in triton.endpoints() if item.address == server.address)


def requests_at(servers: list[Upstream]) -> list[int]:
    return [len(server.requests) for server in servers]


def answered(results: list[Reply | TritonError]) -> int:
    return sum(isinstance(result, Reply) and result.status == 200 for result in results)
