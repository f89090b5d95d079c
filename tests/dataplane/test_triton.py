"""The transport against a real socket that behaves well, and one that does not."""

import asyncio

import pytest

from dataplane.triton import Fault, Reply, Triton, TritonError
from tests.dataplane.worlds import Upstream, until

PATH = "/v2/models/sums.1/versions/1/ready"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@pytest.fixture
async def triton():
    triton = Triton(asyncio.get_running_loop(), connections_max=2)
    yield triton
    triton.close()
    await asyncio.sleep(0)


async def call(triton, addresses, timeout_s=2.0):
    """Post a small request and return the result."""
    done = asyncio.get_running_loop().create_future()
    request = b"POST /x HTTP/1.1\r\nhost: t\r\ncontent-length: 2\r\n\r\nab"
    triton.post(addresses, request, timeout_s, done.set_result)
    return await done


async def test_it_gets_an_answer_and_keeps_the_connection(triton):
    async with Upstream() as upstream:
        for _ in range(3):
            assert (await triton.get(upstream.address, PATH, 2.0)).status == 200
        assert upstream.connections == 1


@pytest.mark.parametrize("prefix", ["http://", ""])
async def test_an_endpoint_may_be_named_with_or_without_its_scheme(triton, prefix):
    async with Upstream() as upstream:
        assert (await triton.get(prefix + upstream.address, PATH, 2.0)).status == 200


async def test_the_number_of_connections_is_limited(triton):
    async with Upstream() as upstream:
        replies = await asyncio.gather(
            *[triton.get(upstream.address, PATH, 2.0) for _ in range(10)]
        )
        assert [reply.status for reply in replies] == [200] * 10
        assert upstream.connections == 2


async def test_the_deadline_ends_a_call_and_its_connection(triton):
    async with Upstream() as upstream:
        upstream.script = ["hang"]
        result = await call(triton, (upstream.address,), timeout_s=0.05)
        assert isinstance(result, TritonError)
        assert result.fault is Fault.TIMEOUT
        assert (await triton.get(upstream.address, PATH, 2.0)).status == 200
        assert upstream.connections == 2


async def test_a_connection_that_dies_is_retried_once_on_another(triton):
    async with Upstream() as upstream:
        upstream.script = ["close", OK]
        result = await call(triton, (upstream.address,))
        assert isinstance(result, Reply)
        assert result.body == b"ok"


async def test_a_call_is_not_retried_twice(triton):
    async with Upstream() as upstream:
        upstream.script = ["close", "close", OK]
        result = await call(triton, (upstream.address,))
        assert isinstance(result, TritonError)
        assert result.fault is Fault.UNREACHABLE
        assert len(upstream.requests) == 2


async def test_another_endpoint_answers_if_one_is_down(triton):
    async with Upstream() as upstream, Upstream() as stopped:
        await stopped.stop()
        upstream.script = [OK] * 8
        results = [await call(triton, (stopped.address, upstream.address)) for _ in range(8)]
        assert all(isinstance(result, Reply) for result in results)


async def test_an_endpoint_without_a_listener_is_unreachable(triton):
    async with Upstream() as stopped:
        await stopped.stop()
        result = await call(triton, (stopped.address,))
        assert isinstance(result, TritonError)
        assert result.fault is Fault.UNREACHABLE


async def test_a_response_that_is_not_http_fails_the_call(triton):
    async with Upstream() as upstream:
        upstream.script = [b"nonsense\r\n\r\n"]
        result = await call(triton, (upstream.address,))
        assert isinstance(result, TritonError)
        assert result.fault is Fault.FAILED
        assert "malformed" in result.message


async def test_a_server_that_closes_after_its_answer_is_not_used_again(triton):
    async with Upstream() as upstream:
        upstream.script = [b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", OK]
        await call(triton, (upstream.address,))
        assert isinstance(await call(triton, (upstream.address,)), Reply)
        assert upstream.connections == 2


async def test_the_json_length_of_a_binary_answer_is_read(triton):
    async with Upstream() as upstream:
        upstream.script = [
            b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 1\r\ncontent-length: 2\r\n\r\nok"
        ]
        result = await call(triton, (upstream.address,))
        assert isinstance(result, Reply)
        assert result.header_length == 1


async def test_pools_of_removed_endpoints_are_closed(triton):
    async with Upstream() as upstream:
        await triton.get(upstream.address, PATH, 2.0)
        triton.keep_only(set())
        assert (await triton.get(upstream.address, PATH, 2.0)).status == 200
        assert upstream.connections == 2


async def test_a_pool_that_is_closed_lets_its_calls_end_and_then_closes(triton):
    async with Upstream() as upstream:
        upstream.always, upstream.delay_s = OK, 0.05
        pending = asyncio.create_task(call(triton, (upstream.address,)))
        await until(lambda: len(upstream.requests) == 1)
        (endpoint,) = triton.endpoints()
        triton.keep_only(set())
        assert isinstance(await pending, Reply)
        await until(lambda: endpoint.open == 0)
        assert list(triton.endpoints()) == []


async def test_a_pool_that_is_closed_closes_the_idle_connections_at_once(triton):
    async with Upstream() as upstream:
        await triton.get(upstream.address, PATH, 2.0)
        (endpoint,) = triton.endpoints()
        triton.close()
        await until(lambda: endpoint.open == 0)


async def test_other_pools_go_on_when_one_is_closed(triton):
    async with Upstream() as stays, Upstream() as goes:
        await triton.get(stays.address, PATH, 2.0)
        await triton.get(goes.address, PATH, 2.0)
        triton.keep_only({stays.address})
        await triton.get(stays.address, PATH, 2.0)
        assert stays.connections == 1


async def test_connections_from_before_a_restart_are_not_used(triton):
    async with Upstream() as upstream:
        await asyncio.gather(*[triton.get(upstream.address, PATH, 2.0) for _ in range(2)])
        upstream.script = ["close"]
        assert (await triton.get(upstream.address, PATH, 2.0)).status == 200
        assert upstream.connections == 3
