"""Calls that were not processed, or perhaps not, are answered by another endpoint."""

import asyncio
import time

import pytest

from dataplane.triton import Fault, Reply, TritonError
from tests.dataplane.transports import (
    FAULTY,
    NOT_LOADED,
    STUB_DEAD,
    answer,
    answered,
    ask,
    ask_at_once,
    ask_often,
    endpoint,
    replicas_on,
    requests_at,
    transport,
    upstreams,
)
from tests.dataplane.worlds import until

pytestmark = pytest.mark.usefixtures("even")


@pytest.mark.parametrize("act", ["close", "half-close", "cut", STUB_DEAD, NOT_LOADED])
async def test_an_endpoint_that_does_not_answer_is_replaced_by_another(act):
    async with upstreams(2) as servers, transport() as triton:
        servers[0].always = act
        # An open circuit tries the endpoint again after the end of this test.
        results = await ask_often(triton, replicas_on(servers, open_ms=60_000), 20)
        assert answered(results) == 20
        assert servers[0].requests
        assert endpoint(triton, servers[1]).retries == len(servers[0].requests)


async def test_an_endpoint_that_is_down_is_replaced_by_another():
    async with upstreams(2) as servers, transport() as triton:
        await servers[0].stop()
        assert answered(await ask_often(triton, replicas_on(servers), 20)) == 20


async def test_all_calls_in_flight_survive_an_endpoint_killed_in_the_middle():
    async with upstreams(2) as servers, transport(retry_floor=50) as triton:
        replicas = replicas_on(servers)
        for server in servers:
            server.delay_s = 0.1
        calls = asyncio.create_task(ask_at_once(triton, replicas, 20))
        await until(lambda: sum(requests_at(servers)) == 20)
        assert servers[0].requests
        await servers[0].stop()
        assert answered(await calls) == 20


async def test_a_dead_answer_of_the_only_endpoint_is_the_end():
    async with upstreams(1) as servers, transport() as triton:
        servers[0].always = STUB_DEAD
        reply = await ask(triton, replicas_on(servers))
        assert reply.error().fault is Fault.DEAD
        assert len(servers[0].requests) == 1


async def test_a_refused_connection_of_the_only_endpoint_is_the_end():
    async with upstreams(1) as servers, transport() as triton:
        await servers[0].stop()
        result = await ask(triton, replicas_on(servers))
        assert result.fault is Fault.UNREACHABLE
        assert servers[0].address in result.message


@pytest.mark.parametrize(
    "act", [FAULTY, answer(400, "wrong shape"), b"nonsense\r\n\r\n", b"HTTP/1.1 101 X\r\n\r\n"]
)
async def test_a_call_that_was_processed_is_not_sent_again(act):
    async with upstreams(2) as servers, transport() as triton:
        for server in servers:
            server.script = [act]
        result = await ask(triton, replicas_on(servers))
        assert sum(requests_at(servers)) == 1
        assert isinstance(result, TritonError) or result.status in (101, 400, 500)


async def test_a_call_is_retried_once():
    async with upstreams(3) as servers, transport() as triton:
        for server in servers:
            server.always = "close"
        result = await ask(triton, replicas_on(servers))
        assert result.fault is Fault.UNREACHABLE
        assert sum(requests_at(servers)) == 2


async def test_a_retry_ends_with_the_deadline_of_its_call():
    async with upstreams(2) as servers, transport() as triton:
        replicas = replicas_on(servers)
        for server in servers:
            # Whichever endpoint is called first.
            server.script = servers[0].script
            server.always = "hang"
        servers[0].script.append(STUB_DEAD)
        began = time.monotonic()
        result = await ask(triton, replicas, timeout_s=0.15)
        assert result.fault is Fault.TIMEOUT
        assert time.monotonic() - began < 0.5
        assert [endpoint(triton, server).in_flight for server in servers] == [0, 0]


@pytest.mark.parametrize("length", [b"-1", b"x", b""], ids=["negative", "no number", "empty"])
async def test_a_wrong_length_of_the_json_is_a_malformed_answer(length):
    async with upstreams(1) as servers, transport() as triton:
        servers[0].script = [
            b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: %b\r\n"
            b"content-length: 2\r\n\r\nok" % length
        ]
        result = await ask(triton, replicas_on(servers))
        assert result.fault is Fault.FAILED
        assert isinstance(await ask(triton, replicas_on(servers)), Reply)


async def test_a_server_that_closes_at_once_fails_the_call_and_does_not_spin():
    async def slam(_, writer):
        nonlocal accepted
        accepted += 1
        writer.transport.abort()

    accepted = 0
    server = await asyncio.start_server(slam, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with transport() as triton:
        result = await ask(triton, (address,), timeout_s=0.5)
        assert isinstance(result, TritonError)
        assert accepted < 20
    server.close()


@pytest.mark.parametrize("address", ["a..b:8000", "127.0.0.1:99999"])
async def test_an_address_that_cannot_exist_is_unreachable_at_once(address):
    async with transport() as triton:
        result = await ask(triton, (address,), timeout_s=0.5)
        assert isinstance(result, TritonError)
        assert result.fault is Fault.UNREACHABLE
        assert [item.open for item in triton.endpoints()] == [0]
