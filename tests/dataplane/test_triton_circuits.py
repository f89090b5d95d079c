"""A replica of a version that fails while its siblings answer is avoided, and nothing else is."""

import asyncio

import pytest

from dataplane.breaker import State
from dataplane.triton import Fault, Unsent
from tests.dataplane.transports import (
    FAULTY,
    NOT_LOADED,
    OK,
    STUB_DEAD,
    answer,
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

pytestmark = pytest.mark.usefixtures("even")


def states(replicas):
    return [circuit.state for circuit in replicas.circuits]


@pytest.mark.parametrize("act", [STUB_DEAD, NOT_LOADED])
async def test_a_dead_replica_is_avoided_after_a_few_requests(act):
    async with upstreams(2) as servers, transport() as triton:
        trips = []
        replicas = replicas_on(servers, trips, open_ms=60_000)
        servers[0].always = act
        assert answered(await ask_often(triton, replicas, 40)) == 40
        assert states(replicas) == [State.OPEN, State.CLOSED]
        assert len(servers[0].requests) == 3
        assert len(trips) == 1
        assert trips[0].startswith(f"replica on {servers[0].address}: ")


async def test_a_stub_that_dies_slowly_fails_few_requests():
    async with upstreams(2) as servers, transport() as triton:
        replicas = replicas_on(servers)
        servers[0].always = STUB_DEAD
        servers[0].delay_s = 0.5
        results = await ask_often(triton, replicas, 30, timeout_s=0.1)
        assert answered(results) >= 27
        assert states(replicas)[0] is not State.CLOSED


async def test_a_faulty_replica_is_avoided_at_the_threshold():
    async with upstreams(2) as servers, transport() as triton:
        replicas = replicas_on(servers, open_ms=60_000)
        servers[0].always = FAULTY
        results = await ask_often(triton, replicas, 60)
        assert 60 - answered(results) == 10
        assert states(replicas)[0] is not State.CLOSED


async def test_another_version_on_the_same_endpoint_is_not_avoided():
    async with upstreams(2) as servers, transport(eject_failures=50) as triton:
        bad, good = replicas_on(servers), replicas_on(servers)
        servers[0].always = STUB_DEAD
        await ask_often(triton, bad, 20)
        servers[0].always = OK
        before = requests_at(servers)[0]
        await ask_often(triton, good, 20)
        assert states(good) == [State.CLOSED, State.CLOSED]
        assert requests_at(servers)[0] > before


async def test_if_all_replicas_fail_alike_no_circuit_opens():
    async with upstreams(2) as servers, transport() as triton:
        replicas = replicas_on(servers)
        for server in servers:
            server.always = FAULTY
        results = await ask_often(triton, replicas, 60)
        assert {reply.error().fault for reply in results} == {Fault.FAILED}
        assert states(replicas) == [State.CLOSED, State.CLOSED]


async def test_one_circuit_always_stays_closed():
    async with upstreams(3) as servers, transport() as triton:
        replicas = replicas_on(servers)
        for server in servers:
            server.always = STUB_DEAD
            await ask_often(triton, replicas, 20)
        assert states(replicas).count(State.CLOSED) >= 1


async def test_a_replica_that_recovers_is_used_again():
    async with upstreams(2) as servers, transport() as triton:
        replicas = replicas_on(servers)
        servers[0].always = STUB_DEAD
        await ask_often(triton, replicas, 20)
        servers[0].always = OK
        await asyncio.sleep(0.06)
        assert answered([await ask(triton, replicas)]) == 1
        await until(lambda: states(replicas) == [State.CLOSED, State.CLOSED])
        assert replicas.open == 0
        before = requests_at(servers)[0]
        await ask_often(triton, replicas, 20)
        assert requests_at(servers)[0] > before


async def test_a_half_open_circuit_has_one_trial_that_is_no_live_request():
    async with upstreams(2) as servers, transport() as triton:
        replicas = replicas_on(servers)
        servers[0].always = STUB_DEAD
        await ask_often(triton, replicas, 20)
        before = len(servers[0].requests)
        servers[0].always = "hang"
        await asyncio.sleep(0.06)
        results = await asyncio.gather(*[ask(triton, replicas, 0.2) for _ in range(10)])
        assert answered(results) == 10
        assert states(replicas)[0] is State.HALF_OPEN
        assert len(servers[0].requests) == before + 1
        await until(lambda: states(replicas)[0] is State.OPEN)


async def test_a_trial_that_is_refused_proves_nothing_and_is_released():
    async with upstreams(2) as servers, transport() as triton:
        replicas = replicas_on(servers)
        servers[0].always = STUB_DEAD
        await ask_often(triton, replicas, 20)
        servers[0].always = answer(400, "wrong shape")
        await asyncio.sleep(0.06)
        before = len(servers[0].requests)
        for _ in range(2):
            await ask(triton, replicas)
            await until(lambda: endpoint(triton, servers[0]).in_flight == 0)
        assert len(servers[0].requests) == before + 2
        assert states(replicas)[0] is State.HALF_OPEN


async def test_a_broken_connection_does_not_count_for_the_version():
    async with upstreams(2) as servers, transport() as triton:
        replicas = replicas_on(servers)
        servers[0].always = "close"
        assert answered(await ask_often(triton, replicas, 40)) == 40
        assert states(replicas) == [State.CLOSED, State.CLOSED]


async def test_the_last_resort_is_a_replica_with_an_open_circuit_and_its_answer_closes_it():
    async with upstreams(2) as servers, transport() as triton:
        replicas = replicas_on(servers)
        servers[0].always = STUB_DEAD
        await ask_often(triton, replicas, 20)
        servers[0].always = OK
        servers[1].always = STUB_DEAD
        assert answered(await ask_often(triton, replicas, 10)) == 10
        assert states(replicas)[0] is State.CLOSED


async def test_a_call_that_expired_in_tritons_queue_is_no_failure():
    async with upstreams(2) as servers, transport() as triton:
        replicas = replicas_on(servers)
        servers[0].always = answer(503, "Request timeout expired")
        results = await ask_often(triton, replicas, 60)
        refusals = [reply.error() for reply in results if reply.status != 200]
        assert len(refusals) == len(servers[0].requests) > 10
        assert {(type(error), error.fault) for error in refusals} == {(Unsent, Fault.TIMEOUT)}
        assert states(replicas) == [State.CLOSED, State.CLOSED]
        assert not endpoint(triton, servers[0]).health.ejected
