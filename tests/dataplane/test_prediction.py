"""Who is blamed for a request that went wrong, and what its breaker hears of it."""

import asyncio

import pytest

from contract.routing import Breaker
from dataplane.breaker import State
from dataplane.triton import Fault, TritonError
from tests.dataplane.test_predict import ALL, BOOM, INFER, REFUSED, ROW, Plane, by_version
from tests.dataplane.wire import Wire, request
from tests.dataplane.worlds import body, model, table

HURRIED = "x-interlock-timeout-ms: 30\r\n"


async def send(plane, *headers):
    """Send a request with each of these headers; return their connections once all are queued."""
    wires = [Wire(answer=plane.application) for _ in headers]
    for wire, lines in zip(wires, headers, strict=True):
        wire.feed(request(INFER, body(ROW), lines))
    await asyncio.sleep(0.01)
    return wires


def runtime(plane, version):
    live = plane.serving.model("sums")
    return plane.serving.lane(live, live.router.explicit(version)).runtime


def late():
    return TritonError(Fault.TIMEOUT, "no answer before the deadline")


async def test_stable_is_not_blamed_for_the_time_that_the_canary_used_up():
    plane = Plane(None, split=ALL, timeout_ms=200)
    (wire,) = await send(plane, "")
    await asyncio.sleep(0.14)
    plane.triton.finish(0, late())
    await asyncio.sleep(0.01)
    plane.triton.finish(1, late())
    assert wire.statuses == [504]
    stable = runtime(plane, "1")
    assert (stable.breaker.calm, stable.stats.predictions) == (True, {"expired": 1})
    window = plane.windows()["canary"]
    assert (window.requests, window.errors, window.fallbacks) == (1, 1, 1)


async def test_the_requests_of_one_call_are_one_failure_to_the_breaker_and_each_counted():
    plane = Plane(None)
    for calls, state in ((1, State.CLOSED), (2, State.OPEN)):
        wires = await send(plane, "", "", "", "")
        plane.triton.finish(calls - 1, late())
        assert [wire.statuses for wire in wires] == [[504]] * 4
        assert runtime(plane, "1").breaker.state is state
    assert plane.windows()["stable"].errors == 8


async def test_the_requests_of_one_call_are_one_answer_to_the_breaker():
    plane = Plane(None)
    await send(plane, "")
    plane.triton.finish(0, late())
    await send(plane, "", "", "", "")
    plane.triton.finish(1)
    assert runtime(plane, "1").breaker.recent_failures == 1


@pytest.mark.parametrize(("endpoints", "state"), [(1, State.OPEN), (2, State.CLOSED)])
async def test_three_calls_in_a_row_without_an_answer_are_enough_of_the_only_endpoint(
    endpoints, state
):
    plane = Plane(None)
    addresses = tuple(f"127.0.0.1:{port}" for port in range(1, endpoints + 1))
    route = model(breaker=Breaker(window=20, failures=10))
    plane.serving.apply(table(route, 2, addresses))
    for call in range(3):
        await send(plane, "")
        plane.triton.finish(call, late())
    # Of several the circuits see to the one that hangs; the others may be well.
    assert runtime(plane, "1").breaker.state is state


async def test_what_runs_out_of_time_in_the_queue_does_not_open_the_breaker_and_is_counted():
    plane = Plane(None, timeout_ms=60)
    stable = runtime(plane, "1")
    stable.batcher.in_flight = 4
    await send(plane, *[""] * 12)
    await asyncio.sleep(0.06)
    stable.batcher.in_flight = 0
    stable.batcher._send_ready()
    assert plane.triton.calls == []
    assert stable.breaker.calm
    assert plane.windows()["stable"].errors == 12


async def test_nobody_else_is_asked_for_a_client_that_hung_up():
    plane = Plane(None, split=ALL)
    (wire,) = await send(plane, "")
    wire.connection.connection_lost(None)
    plane.triton.finish(0, BOOM)
    await asyncio.sleep(0.01)
    assert len(plane.triton.calls) == 1
    window = plane.windows()["canary"]
    assert (window.errors, window.fallbacks) == (1, 0)


async def test_an_impatient_client_that_hung_up_is_held_against_nobody():
    plane = Plane(None)
    (wire,) = await send(plane, HURRIED)
    wire.connection.connection_lost(None)
    plane.triton.finish(0, late())
    stable = runtime(plane, "1")
    assert (stable.breaker.calm, stable.stats.predictions) == (True, {"abandoned": 1})
    assert [w.requests for w in plane.windows().values()] == [0]


@pytest.mark.parametrize("result", [BOOM, TritonError(Fault.DEAD, "gone")])
async def test_a_refusal_is_not_held_against_the_canary_where_stable_accepts_nothing(result):
    plane = Plane(by_version(v1=result, v2=REFUSED), split=ALL)
    answer = await plane.ask()
    assert answer.status in (500, 503)
    assert [w.requests for w in plane.windows().values()] == [0]
    assert runtime(plane, "1").stats.predictions == {"error": 1}


async def test_a_versions_latency_does_not_hold_the_time_of_who_failed_before():
    plane = Plane(None, split=ALL)
    await send(plane, "")
    await asyncio.sleep(0.1)
    plane.triton.finish(0, BOOM)
    await asyncio.sleep(0.01)
    plane.triton.finish(1)
    assert runtime(plane, "1").stats.latency.sum < 0.1
