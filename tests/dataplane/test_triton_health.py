"""Ejection of endpoints that do not answer, or that fail far more often than their siblings."""

import asyncio

import pytest

from dataplane.config import Transport
from dataplane.triton.health import Health, outliers
from tests.dataplane.transports import (
    FAULTY,
    NOT_LOADED,
    OK,
    STUB_DEAD,
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


def make(good=0, bad=0, **changes):
    health = Health(Transport(**changes))
    for _ in range(good):
        health.answered(0.001, 0.0)
    for _ in range(bad):
        health.failed(0.0, 0.001)
    return health


def durations(health, count, apart_s):
    now = 0.0
    result = []
    for _ in range(count):
        result.append(health.eject(now))
        now += result[-1]
        health.restore(now)
        now += apart_s
    return result


def test_consecutive_failures_are_too_many_at_the_threshold():
    health = make(eject_failures=3)
    assert [health.failed(0.0, None) for _ in range(3)] == [False, False, True]


def test_any_answer_resets_the_consecutive_failures():
    health = make(eject_failures=2)
    health.failed(0.0, None)
    health.answered(0.001, 0.0)
    assert not health.failed(0.0, None)
    health.failed(0.0, 0.001)
    assert not health.failed(0.0, None)


def test_the_time_out_of_service_grows_is_jittered_and_bounded():
    result = durations(make(eject_s=1.0, eject_max_s=8.0), 6, apart_s=1.0)
    for duration_s, about_s in zip(result, [1.0, 2.0, 4.0, 8.0, 8.0, 8.0], strict=True):
        assert 0.8 * about_s <= duration_s <= 1.2 * about_s
    assert len(set(result)) == 6


def test_long_service_makes_the_next_ejection_short_again():
    assert max(durations(make(eject_s=1.0), 4, apart_s=1_000.0)) <= 1.2


def test_one_trial_at_a_time_and_not_before_its_time():
    health = make(eject_s=1.0)
    duration_s = health.eject(0.0)
    assert not health.trial_due(duration_s - 0.01)
    assert health.trial_due(duration_s)
    assert not health.trial_due(duration_s)


@pytest.mark.parametrize(("bad", "expected"), [(0, False), (25, False), (35, True), (100, True)])
def test_an_outlier_fails_far_more_often_than_its_siblings(bad, expected):
    siblings = [make(100 - bad, bad), make(100), make(100)]
    assert (outliers(siblings, Transport()) == siblings[:1]) is expected


def test_siblings_that_fail_alike_are_no_outliers():
    assert outliers([make(10, 90), make(20, 80), make(5, 95)], Transport()) == []


def test_the_gap_is_a_setting():
    siblings = [make(90, 10), make(100)]
    assert outliers(siblings, Transport()) == []
    assert outliers(siblings, Transport(eject_gap_bp=500)) == siblings[:1]


def test_few_answers_are_no_evidence():
    assert outliers([make(0, 19), make(100)], Transport()) == []


@pytest.mark.parametrize("act", ["close", "hang", "cut"])
async def test_an_endpoint_that_does_not_answer_is_ejected(act):
    async with upstreams(2) as servers, transport(eject_failures=3, eject_s=60.0) as triton:
        replicas = replicas_on(servers)
        await ask_often(triton, replicas, 6)
        servers[0].always = act
        await ask_often(triton, replicas, 30, timeout_s=0.05)
        health = endpoint(triton, servers[0]).health
        assert (health.ejected, health.ejections) == (True, 1)
        before = len(servers[0].requests)
        assert answered(await ask_often(triton, replicas, 20)) == 20
        assert len(servers[0].requests) == before


async def test_an_endpoint_that_fails_far_more_often_is_ejected():
    async with upstreams(2) as servers, transport(eject_s=60.0) as triton:
        servers[0].always = FAULTY
        versions = [replicas_on(servers) for _ in range(20)]
        for replicas in versions:
            await ask_at_once(triton, replicas, 6)
        await until(lambda: endpoint(triton, servers[0]).health.ejected)
        assert answered(await ask_often(triton, versions[0], 10)) == 10


@pytest.mark.parametrize("act", [STUB_DEAD, NOT_LOADED])
async def test_an_answer_that_a_version_is_dead_is_an_answer_of_the_endpoint(act):
    async with upstreams(2) as servers, transport(eject_failures=2) as triton:
        servers[0].always = act
        await ask_often(triton, replicas_on(servers), 20)
        assert not endpoint(triton, servers[0]).health.ejected


@pytest.mark.parametrize(("count", "most"), [(2, 1), (3, 1), (4, 2)])
async def test_never_more_than_half_of_a_cluster_is_ejected(count, most):
    async with upstreams(count) as servers, transport(eject_failures=1, eject_s=60.0) as triton:
        for server in servers:
            server.always = "close"
        await ask_often(triton, replicas_on(servers), 40)
        assert sum(item.health.ejected for item in triton.endpoints()) == most


async def test_an_endpoint_returns_when_a_copy_of_a_live_request_was_answered():
    async with upstreams(2) as servers, transport(eject_failures=2, eject_s=0.1) as triton:
        replicas = replicas_on(servers)
        servers[0].always = "close"
        await ask_often(triton, replicas, 20)
        health = endpoint(triton, servers[0]).health
        assert health.ejected
        servers[0].always = OK
        await asyncio.sleep(0.15)
        assert answered([await ask(triton, replicas)]) == 1
        await until(lambda: not health.ejected)
        assert replicas.group.ejected == 0
        before = requests_at(servers)
        await ask_often(triton, replicas, 20)
        assert requests_at(servers)[0] > before[0]


async def test_a_trial_that_fails_keeps_it_ejected_and_affects_no_request():
    async with upstreams(2) as servers, transport(eject_failures=2, eject_s=0.05) as triton:
        replicas = replicas_on(servers)
        servers[0].always = "close"
        await ask_often(triton, replicas, 20)
        health = endpoint(triton, servers[0]).health
        for _ in range(3):
            await until(lambda: asyncio.get_running_loop().time() > health.return_at)
            before = health.return_at
            assert answered([await ask(triton, replicas)]) == 1
            await until(lambda before=before: health.return_at > before)
        assert health.ejected
        assert health.ejections == 1


async def test_a_deadline_too_short_to_be_met_is_not_the_endpoints_fault():
    async with upstreams(2) as servers, transport(eject_failures=1) as triton:
        replicas = replicas_on(servers)
        for server in servers:
            server.delay_s = 0.05
        await ask(triton, replicas)
        while not all(item.health.latency_s for item in triton.endpoints()):
            await ask(triton, replicas)
        await ask_often(triton, replicas, 6, timeout_s=0.01)
        assert not any(item.health.ejected for item in triton.endpoints())
