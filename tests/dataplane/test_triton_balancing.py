"""Which endpoint gets a call: the cheaper of two, and never one that is ejected."""

import asyncio

from contract.routing import Breaker
from dataplane.config import Transport as Settings
from dataplane.triton import Replicas, TritonError
from dataplane.triton.health import Health
from tests.dataplane.transports import (
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


async def test_equal_endpoints_share_the_calls():
    async with upstreams(3) as servers, transport() as triton:
        replicas = replicas_on(servers)
        for server in servers:
            server.delay_s = 0.002
        for _ in range(15):
            assert answered(await ask_at_once(triton, replicas, 12)) == 12
        assert min(requests_at(servers)) > 30


async def test_an_endpoint_ten_times_slower_gets_few_calls():
    async with upstreams(3) as servers, transport() as triton:
        replicas = replicas_on(servers)
        for server in servers:
            server.delay_s = 0.003
        servers[0].delay_s = 0.03
        for _ in range(25):
            assert answered(await ask_at_once(triton, replicas, 6)) == 6
        assert len(servers[0].requests) < 25
        assert not endpoint(triton, servers[0]).health.ejected


async def test_an_endpoint_that_was_slow_once_recovers():
    async with upstreams(2) as servers, transport() as triton:
        replicas = replicas_on(servers)
        await ask_often(triton, replicas, 4)
        health = endpoint(triton, servers[0]).health
        now = asyncio.get_running_loop().time()
        health.answered(10.0, now)
        slow = health.cost(0, now)
        for minute in range(1, 15):
            health.cost(0, now + 60.0 * minute)
        assert health.cost(0, now + 900.0) < slow / 1_000


def test_one_slow_answer_costs_an_endpoint_its_share_for_less_than_a_second():
    health = Health(Settings())
    now = 100.0
    health.answered(0.1, now)
    while health.cost(0, now) > 0.002:
        now += 0.01
    assert now < 101.0
    # Its usual latency is kept: an impatient call still proves nothing.
    assert not health.was_patient(0.3)


def test_an_endpoint_with_calls_in_flight_is_as_slow_as_its_silence():
    health = Health(Settings())
    health.answered(0.1, 100.0)
    health.call_started(160.0)
    assert health.cost(1, 160.0) == 0.2
    assert health.cost(1, 160.5) == 1.0


async def test_an_endpoint_that_hangs_gets_few_calls_until_they_fail():
    async with upstreams(2) as servers, transport() as triton:
        replicas = replicas_on(servers)
        await ask_often(triton, replicas, 20)
        servers[0].script = ["hang"] * 100
        before = len(servers[0].requests)
        while len(servers[0].requests) == before:
            hanging = asyncio.create_task(ask(triton, replicas))
            await asyncio.sleep(0.05)
        for _ in range(20):
            assert answered(await ask_at_once(triton, replicas, 2)) == 2
        assert len(servers[0].requests) == before + 1
        assert isinstance(await hanging, TritonError)


async def test_calls_in_flight_make_an_endpoint_more_expensive():
    async with upstreams(2) as servers, transport() as triton:
        replicas = replicas_on(servers)
        await ask_often(triton, replicas, 20)
        for server in servers:
            server.delay_s = 0.1
        before = requests_at(servers)
        await ask_at_once(triton, replicas, 20)
        shares = [now - then for now, then in zip(requests_at(servers), before, strict=True)]
        assert min(shares) >= 4


async def test_in_flight_is_0_when_all_calls_have_ended():
    async with upstreams(2) as servers, transport() as triton:
        replicas = replicas_on(servers)
        servers[0].script = ["close", b"nonsense\r\n\r\n", "hang", "cut"]
        await asyncio.gather(*[ask(triton, replicas, 0.1) for _ in range(20)])
        assert [item.in_flight for item in triton.endpoints()] == [0, 0]


async def test_one_endpoint_has_neither_circuits_nor_balance():
    replicas = Replicas(("127.0.0.1:1",), Breaker())
    assert replicas.circuits == ()
    async with upstreams(1) as servers, transport() as triton:
        replicas = replicas_on(servers)
        assert answered(await ask_often(triton, replicas, 3)) == 3
        assert replicas.group.only is endpoint(triton, servers[0])
        assert len(endpoint(triton, servers[0]).groups) == 0


async def test_a_cluster_of_one_is_served_while_its_endpoint_is_ejected_elsewhere():
    async with upstreams(2) as servers, transport(eject_failures=2) as triton:
        both, alone = replicas_on(servers), replicas_on(servers[:1])
        servers[0].always = "close"
        await ask_often(triton, both, 20)
        assert endpoint(triton, servers[0]).health.ejected
        servers[0].always = "answer"
        servers[0].script = [b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]
        assert answered(await ask_often(triton, alone, 1)) == 1
