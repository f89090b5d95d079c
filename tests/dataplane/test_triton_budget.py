"""The retry budget: whatever fails, the load never exceeds its share and its floor."""

import pytest

from dataplane.triton.retry_budget import WINDOW_S, Budget
from tests.dataplane.transports import (
    STUB_DEAD,
    ask_at_once,
    ask_often,
    endpoint,
    replicas_on,
    requests_at,
    transport,
    upstreams,
)

pytestmark = pytest.mark.usefixtures("even")


def spend_all(budget):
    count = 0
    while budget.take():
        count += 1
    return count


def test_it_allows_the_floor_without_any_call():
    assert spend_all(Budget(1_000, 3)) == 3


def test_it_allows_a_share_of_the_calls_beyond_the_floor():
    budget = Budget(1_000, 3)
    budget.calls = 100
    assert spend_all(budget) == 13
    budget.calls += 9
    assert spend_all(budget) == 0
    budget.calls += 1
    assert spend_all(budget) == 1


def test_calls_count_for_ten_seconds():
    budget = Budget(1_000, 1)
    budget.calls = 100
    for _ in range(WINDOW_S - 1):
        budget.roll()
    assert spend_all(budget) == 11
    budget.roll()
    assert spend_all(budget) == 0


def test_what_was_spent_comes_back_after_ten_seconds():
    budget = Budget(1_000, 2)
    assert spend_all(budget) == 2
    for _ in range(WINDOW_S - 1):
        budget.roll()
        assert spend_all(budget) == 0
    budget.roll()
    assert budget.at_rest
    assert spend_all(budget) == 2


async def test_a_full_outage_never_becomes_a_retry_storm():
    async with upstreams(4) as servers, transport(retry_floor=5, eject_s=60.0) as triton:
        for server in servers:
            server.always = STUB_DEAD
        replicas = replicas_on(servers)
        for _ in range(5):
            await ask_at_once(triton, replicas, 60)
        # The trials of ejected endpoints and open circuits are added: one each at a time.
        assert 300 < sum(requests_at(servers)) <= 300 * 1.1 + 5 + 2 * len(servers)
        assert sum(endpoint(triton, server).exhausted for server in servers) > 200


async def test_a_full_outage_of_broken_connections_is_no_retry_storm():
    async with upstreams(2) as servers, transport(retry_floor=5, eject_s=60.0) as triton:
        for server in servers:
            server.always = "close"
        await ask_often(triton, replicas_on(servers), 100)
        assert 100 < sum(requests_at(servers)) <= 100 * 1.1 + 5


async def test_the_budget_applies_to_a_single_endpoint_as_well():
    async with upstreams(1) as servers, transport(retry_floor=5) as triton:
        servers[0].always = "close"
        await ask_often(triton, replicas_on(servers), 100)
        assert 100 < len(servers[0].requests) <= 100 * 1.1 + 5


async def test_budgets_of_clusters_are_separate():
    async with upstreams(2) as servers, transport(retry_floor=1, retry_budget_bp=1) as triton:
        servers[0].script = ["close"] * 3
        await ask_often(triton, replicas_on(servers[:1]), 2)
        servers[1].script = ["close"]
        (reply,) = await ask_often(triton, replicas_on(servers[1:]), 1)
        assert reply.status == 200
