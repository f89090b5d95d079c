"""More load than the version can handle: it is busy all the time, and no breaker opens."""

import asyncio
import random

import pytest

from contract.routing import Batching
from dataplane.breaker import State
from dataplane.triton import Fault, TritonError
from tests.dataplane.slow import Client, SlowTriton, Tally, World
from tests.dataplane.worlds import canary

# A tenth of the product's, so that one second shows what ten would.
TIMEOUT_MS = 200
# The pause after a refusal: clients and model share the loop.
PAUSE_S = 0.02


async def overloaded(triton, clients, numbers=lambda: 1.0, rows=1, seconds=1.5, **changes):
    """Return the world of a version with `clients` clients that send without a pause."""
    world = World(triton, numbers, **{"timeout_ms": TIMEOUT_MS} | changes)
    asking = asyncio.create_task(world.run(clients, 0.5 + seconds, rows=rows, pause_s=PAUSE_S))
    # The learning phase is not measured.
    await asyncio.sleep(0.5)
    world.tally = Tally()
    triton.rows_done = 0
    await asking
    await world.stop()
    return world


def share_in_time(world, rows=1):
    """Return the share of the computed requests that were answered in time."""
    return world.tally.in_time * rows / max(world.triton.rows_done, 1)


@pytest.mark.parametrize(
    ("row_ms", "clients"), [(100, 2), (20, 16), (4, 64), (1, 256)], ids=lambda value: str(value)
)
async def test_a_version_answers_in_time_up_to_its_capacity(row_ms, clients):
    triton = SlowTriton(lambda _: row_ms / 1000)
    world = await overloaded(triton, clients)
    assert share_in_time(world) >= 0.8
    # Busy for most of the time: other processes of the machine take their part.
    assert triton.rows_done * row_ms / 1000 >= 0.6 * 1.5
    assert world.runtime().stats.trips == 0


async def test_costs_that_vary_tenfold_are_answered_in_time():
    rng = random.Random(1)
    triton = SlowTriton(lambda number: number / 1000)
    world = await overloaded(triton, 32, lambda: rng.choice((4.0, 40.0)))
    assert share_in_time(world) >= 0.75
    assert world.runtime().stats.trips == 0


async def test_the_first_load_of_an_unknown_version_causes_no_outage():
    triton = SlowTriton(lambda _: 0.02)
    world = World(triton, timeout_ms=TIMEOUT_MS)
    await world.run(64, 1.0)
    await world.stop()
    assert triton.sizes[0] == 1
    assert world.tally.in_time >= 0.6 * 1.0 / 0.02
    assert world.runtime().breaker.calm


async def test_feasible_requests_of_many_rows_are_answered():
    world = await overloaded(SlowTriton(lambda _: 0.005), 4, rows=16)
    assert share_in_time(world, rows=16) >= 0.75
    assert world.runtime().stats.trips == 0


async def test_infeasible_requests_are_refused_and_trip_nothing():
    world = await overloaded(SlowTriton(lambda _: 0.02), 3, rows=32)
    assert world.tally.codes["overloaded"] > world.tally.codes["deadline_exceeded"]
    assert set(world.tally.codes) == {"overloaded", "deadline_exceeded"}
    assert world.runtime().stats.trips == 0


async def test_small_requests_are_answered_beside_infeasible_ones():
    triton = SlowTriton(lambda _: 0.02)
    world = World(triton, timeout_ms=TIMEOUT_MS)
    small = asyncio.create_task(world.run(4, 1.5))
    await asyncio.sleep(0.3)
    world.clients += (large := [Client(world, 32, 0.01, {}) for _ in range(4)])
    for client in large:
        client.ask()
    world.tally = Tally()
    await small
    await world.stop()
    assert world.tally.in_time >= 0.5 * 1.2 / 0.02
    assert world.runtime().stats.trips == 0


async def test_an_overloaded_canary_falls_back_and_no_breaker_opens():
    triton = SlowTriton(lambda _: 0.004)
    world = await overloaded(triton, 64, split=canary(5_000))
    assert share_in_time(world) >= 0.75
    assert [world.runtime(version).stats.trips for version in "12"] == [0, 0]
    ends = {}
    windows, _ = world.telemetry.drain(world.serving.generation)
    for window in windows:
        assert window.assigned_requests == window.ends.total
        ends[window.variant] = window.ends
    assert ends["canary"].shed > 0
    assert ends["stable"].shed > 0


async def test_a_version_that_hangs_trips_its_breaker_whatever_its_load():
    for clients, row_s in ((1, 0.0001), (32, 0.0001), (32, 0.01), (4, 0.04)):
        triton = SlowTriton(lambda _, row_s=row_s: row_s)
        world = World(triton, timeout_ms=TIMEOUT_MS)
        asking = asyncio.create_task(world.run(clients, 4.0))
        await asyncio.sleep(0.5)
        assert world.runtime().breaker.state is State.CLOSED
        triton.hangs = True
        for _ in range(300):
            await asyncio.sleep(0.01)
            if world.runtime().stats.trips:
                break
        assert world.runtime().stats.trips == 1, (clients, row_s)
        asking.cancel()
        await world.stop()


async def test_requests_behind_a_hanging_canary_are_answered_by_stable_in_time():
    triton = SlowTriton(lambda _: 0.001)
    stable, canary_calls = triton.post, []

    def post(addresses, request, timeout_s, on_done):
        if b"/versions/2/" not in request:
            stable(addresses, request, timeout_s, on_done)
            return
        canary_calls.append(request)
        late = TritonError(Fault.TIMEOUT, "no answer before the deadline")
        asyncio.get_running_loop().call_later(timeout_s, on_done, late)

    triton.post = post
    world = World(triton, timeout_ms=TIMEOUT_MS, split=canary(5_000))
    tally = await world.run(32, 1.5)
    await world.stop()
    assert canary_calls
    assert world.runtime("2").stats.trips >= 1
    assert tally.in_time >= 0.98 * sum(tally.codes.values())


async def test_a_version_that_hangs_from_the_start_trips_its_breaker():
    triton = SlowTriton(lambda _: 0.001)
    triton.hangs = True
    world = World(triton, timeout_ms=TIMEOUT_MS)
    asking = asyncio.create_task(world.run(8, 4.0))
    for _ in range(200):
        await asyncio.sleep(0.01)
        if world.runtime().stats.trips:
            break
    assert world.runtime().stats.trips == 1
    asking.cancel()
    await world.stop()


async def test_batches_grow_if_size_makes_rows_cheaper():
    triton = SlowTriton(lambda _: 0.0001, fixed_s=0.02)
    world = await overloaded(triton, 64, seconds=1.0)
    assert triton.rows_done > 5 * 1.0 / 0.02
    assert share_in_time(world) >= 0.75


async def test_a_model_without_a_batch_dimension_is_no_exception():
    triton = SlowTriton(lambda _: 0.02)
    world = await overloaded(triton, 16, seconds=1.0, batching=Batching(max_batch_size=1))
    assert share_in_time(world) >= 0.75
    assert set(triton.sizes) == {1}
