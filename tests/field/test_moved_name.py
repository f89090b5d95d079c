"""The name of an endpoint resolves to a new address: calls follow it and none fails."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest

from tests.dataplane.test_triton_connections import burst, failures, triton
from tests.dataplane.worlds import Upstream, until


@asynccontextmanager
async def two_servers():
    """Run two servers on the same port of two addresses."""
    async with Upstream() as before:
        after = await Upstream().start("127.0.0.2", int(before.address.rpartition(":")[2]))
        try:
            yield before, after
        finally:
            await after.stop()


@pytest.fixture
async def names(monkeypatch):
    """Return a mapping of fake host names to addresses, which the resolver uses."""
    loop, addresses = asyncio.get_running_loop(), {}
    real = loop.getaddrinfo

    async def getaddrinfo(host, port, **options):
        return await real(addresses.get(host, host), port, **options)

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    return addresses


async def test_a_new_address_of_a_name_is_used(names):
    async with two_servers() as (before, after), triton(resolve_s=0.01) as client:
        address = f"triton.example:{before.address.rpartition(':')[2]}"
        names["triton.example"] = "127.0.0.1"
        results = await burst(client, address)
        names["triton.example"] = "127.0.0.2"
        assert after.requests == []
        async with asyncio.timeout(20):
            while not after.requests:
                results += await burst(client, address, 2)
        # The old address gets no more calls.
        old = len(before.requests)
        results += await burst(client, address)
        assert failures(results) == []
        assert len(before.requests) == old


async def test_a_resolver_failure_keeps_the_connections(monkeypatch):
    async with Upstream() as upstream, triton(resolve_s=0.01) as client:
        await burst(client, f"localhost:{upstream.address.rpartition(':')[2]}")
        (pool,) = client.endpoints()
        opened, failed = pool.open, []

        async def getaddrinfo(*_, **__):
            failed.append(1)
            raise socket.gaierror(-3, "Temporary failure in name resolution")

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        await until(lambda: len(failed) > 1)
        assert pool.open == opened
