"""A second call to another endpoint when the first takes long; the first good answer wins."""

import asyncio

from dataplane.triton import Fault
from tests.dataplane.transports import (
    FAULTY,
    answered,
    ask,
    ask_often,
    endpoint,
    replicas_on,
    requests_at,
    transport,
    upstreams,
)
from tests.dataplane.worlds import until


def both(servers, **changes):
    for server in servers:
        for name, value in changes.items():
            setattr(server, name, value)


async def test_a_slow_endpoint_is_overtaken():
    async with upstreams(2) as servers, transport() as triton:
        replicas = replicas_on(servers, hedge_after_ms=20)
        servers[0].delay_s = 1.5
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert answered(await ask_often(triton, replicas, 12)) == 12
        assert loop.time() - began < 1.0
        assert endpoint(triton, servers[1]).hedges >= 1


async def test_without_the_setting_no_call_is_sent_twice():
    async with upstreams(2) as servers, transport() as triton:
        replicas = replicas_on(servers)
        both(servers, delay_s=0.05)
        await ask_often(triton, replicas, 4)
        assert sum(requests_at(servers)) == 4
        assert sum(item.hedges for item in triton.endpoints()) == 0


async def test_a_call_that_is_answered_in_time_is_sent_once():
    async with upstreams(2) as servers, transport() as triton:
        assert answered(await ask_often(triton, replicas_on(servers, hedge_after_ms=100), 10)) == 10
        await asyncio.sleep(0.15)
        assert sum(requests_at(servers)) == 10


async def test_the_loser_is_discarded_and_its_connection_kept():
    async with upstreams(2) as servers, transport() as triton:
        replicas = replicas_on(servers, hedge_after_ms=10)
        both(servers, delay_s=0.05)
        assert answered([await ask(triton, replicas)]) == 1
        await until(lambda: all(item.in_flight == 0 for item in triton.endpoints()))
        assert requests_at(servers) == [1, 1]
        both(servers, delay_s=0.0)
        assert answered(await ask_often(triton, replicas, 10)) == 10
        assert [server.connections for server in servers] == [1, 1]


async def test_a_loser_that_never_answers_ends_with_the_deadline():
    async with upstreams(2) as servers, transport() as triton:
        replicas = replicas_on(servers, hedge_after_ms=10)
        servers[0].always = "hang"
        assert answered(await ask_often(triton, replicas, 4, timeout_s=0.2)) == 4
        await until(lambda: all(item.in_flight == 0 for item in triton.endpoints()))


async def test_a_faulty_answer_does_not_win():
    async with upstreams(2) as servers, transport() as triton:
        replicas = replicas_on(servers, hedge_after_ms=10)
        both(servers, delay_s=0.1)
        servers[0].always, servers[0].delay_s = FAULTY, 0.04
        results = await asyncio.gather(*[ask(triton, replicas) for _ in range(4)])
        assert answered(results) == 4


async def test_when_both_fail_the_call_fails_once():
    async with upstreams(2) as servers, transport() as triton:
        replicas = replicas_on(servers, hedge_after_ms=10)
        both(servers, always=FAULTY, delay_s=0.05)
        result = await ask(triton, replicas)
        assert result.error().fault is Fault.FAILED
        both(servers, always="hang")
        result = await ask(triton, replicas, timeout_s=0.1)
        assert result.fault is Fault.TIMEOUT
        assert sum(requests_at(servers)) == 4


async def test_hedges_use_the_retry_budget():
    async with upstreams(2) as servers, transport(retry_floor=2, retry_budget_bp=1) as triton:
        replicas = replicas_on(servers, hedge_after_ms=5)
        both(servers, delay_s=0.03)
        assert answered(await ask_often(triton, replicas, 10)) == 10
        endpoints = list(triton.endpoints())
        assert sum(item.hedges for item in endpoints) == 2
        assert sum(item.exhausted for item in endpoints) == 8


async def test_a_call_that_waits_for_a_connection_is_hedged_too():
    async with upstreams(2) as servers, transport(connections_max=1) as triton:
        replicas = replicas_on(servers, hedge_after_ms=10)
        servers[0].always = "hang"
        results = await asyncio.gather(*[ask(triton, replicas, 1.0) for _ in range(6)])
        assert answered(results) == 6
