"""Which version a failure counts for, and what its breaker records."""

import asyncio
from hashlib import sha256

import msgspec
import pytest

from contract.bucketing import bucket
from contract.messages import CLUSTERS
from contract.routing import Batching, Breaker, Tenant
from dataplane.breaker import State
from dataplane.triton import Fault, TritonError
from dataplane.unit_clusters import cluster_of
from tests.dataplane.test_predict import ALL, BOOM, INFER, REFUSED, ROW, Plane, by_version
from tests.dataplane.wire import Wire, request
from tests.dataplane.worlds import body, model, table

# A version that is silent for this long hangs, at a timeout of 100 ms.
HANGS_S = 0.11
SHORT_TIMEOUT = "x-interlock-timeout-ms: 30\r\n"


async def send(plane, *headers):
    """Send a request for each of these headers; return their connections once all are queued."""
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


async def test_stable_is_not_charged_for_the_time_that_the_canary_used():
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
    plane = Plane(None, timeout_ms=100)
    for calls, size, state in ((1, 4, State.CLOSED), (2, 1, State.OPEN)):
        wires = await send(plane, *[""] * size)
        await asyncio.sleep(HANGS_S)
        plane.triton.finish(calls - 1, late())
        assert [wire.statuses for wire in wires] == [[504]] * size
        assert runtime(plane, "1").breaker.state is state
    assert plane.windows()["stable"].errors == 5


async def test_the_requests_of_one_call_are_one_answer_to_the_breaker():
    plane = Plane(None, timeout_ms=100)
    await send(plane, "")
    await asyncio.sleep(HANGS_S)
    plane.triton.finish(0, late())
    await send(plane, "", "", "", "")
    plane.triton.finish(1)
    assert runtime(plane, "1").breaker.recent_failures == 1


@pytest.mark.parametrize(("endpoints", "state"), [(1, State.OPEN), (2, State.CLOSED)])
async def test_three_consecutive_silent_calls_of_the_only_endpoint_open_the_breaker(
    endpoints, state
):
    plane = Plane(None)
    addresses = tuple(f"127.0.0.1:{port}" for port in range(1, endpoints + 1))
    route = model(breaker=Breaker(window=20, failures=10), timeout_ms=100)
    plane.serving.apply(table(route, 2, addresses))
    for call in range(3):
        await send(plane, "")
        await asyncio.sleep(HANGS_S)
        plane.triton.finish(call, late())
    # With several endpoints the circuits handle the one that hangs; the others may be healthy.
    assert runtime(plane, "1").breaker.state is state


async def test_a_request_that_expires_in_the_queue_is_counted_and_opens_no_breaker():
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


async def test_no_other_version_is_called_for_a_client_that_hung_up():
    plane = Plane(None, split=ALL)
    (wire,) = await send(plane, "")
    wire.connection.connection_lost(None)
    plane.triton.finish(0, BOOM)
    await asyncio.sleep(0.01)
    assert len(plane.triton.calls) == 1
    window = plane.windows()["canary"]
    assert (window.errors, window.fallbacks) == (1, 0)


async def test_an_impatient_client_that_hung_up_is_no_failure():
    plane = Plane(None)
    (wire,) = await send(plane, SHORT_TIMEOUT)
    wire.connection.connection_lost(None)
    plane.triton.finish(0, late())
    stable = runtime(plane, "1")
    assert (stable.breaker.calm, stable.stats.predictions) == (True, {"abandoned": 1})
    assert [w.requests for w in plane.windows().values()] == [0]


@pytest.mark.parametrize("result", [BOOM, TritonError(Fault.DEAD, "gone")])
async def test_a_refusal_is_no_failure_of_the_canary_if_stable_refuses_too(result):
    plane = Plane(by_version(v1=result, v2=REFUSED), split=ALL)
    answer = await plane.ask()
    assert answer.status in (500, 503)
    assert [w.requests for w in plane.windows().values()] == [0]
    assert runtime(plane, "1").stats.predictions == {"error": 1}


async def test_a_versions_latency_excludes_the_version_that_failed_before():
    plane = Plane(None, split=ALL)
    await send(plane, "")
    await asyncio.sleep(0.1)
    plane.triton.finish(0, BOOM)
    await asyncio.sleep(0.01)
    plane.triton.finish(1)
    assert runtime(plane, "1").stats.latency.sum < 0.1


# --- ends of requests for their assigned version --------------------------------------------------


def ends_of(plane, variant):
    """Return the nonzero ends, by name, and the units without an answer."""
    window = plane.windows()[variant]
    counts = msgspec.to_builtins(window.ends)
    assert window.assigned_requests == sum(counts.values())
    return counts, window.unanswered


@pytest.mark.parametrize(
    ("canary", "stable", "end"),
    [
        (None, None, "answered"),
        (BOOM, None, "fell_back"),
        (BOOM, BOOM, "failed"),
        (BOOM, REFUSED, "failed"),
        (REFUSED, None, "fell_back"),
        (REFUSED, REFUSED, "refused"),
        (REFUSED, BOOM, "failed"),
        (TritonError(Fault.DEAD, "gone"), None, "fell_back"),
    ],
)
async def test_a_request_ends_by_what_its_version_did(canary, stable, end):
    plane = Plane(by_version(v1=stable, v2=canary), split=ALL)
    await plane.ask()
    assert ends_of(plane, "canary") == ({end: 1}, end in ("failed", "fell_back"))


async def test_requests_past_an_open_breaker_are_bypassed_and_unanswered():
    plane = Plane(by_version(v2=BOOM), split=ALL)
    for _ in range(5):
        assert (await plane.ask()).status == 200
    assert ends_of(plane, "canary") == ({"fell_back": 2, "bypassed": 3}, 5)


async def test_a_version_with_an_open_breaker_and_no_fallback_failed():
    plane = Plane(by_version(v1=TritonError(Fault.DEAD, "gone")))
    for _ in range(4):
        await plane.ask()
    assert ends_of(plane, "stable") == ({"failed": 4}, 4)


async def test_a_shed_request_ends_as_shed_even_if_stable_answers():
    plane = Plane(split=ALL, batching=Batching(max_batch_size=4, max_queue_size=0))
    assert (await plane.ask()).status == 503
    assert ends_of(plane, "canary") == ({"shed": 1}, 1)
    plane = Plane(split=ALL)
    runtime(plane, "2").batcher._waiting_max = 0
    assert (await plane.ask()).headers["x-interlock-fallback"] == "queue_full"
    assert ends_of(plane, "canary") == ({"shed": 1}, 1)


async def test_a_client_that_leaves_after_its_request_was_sent_abandoned_it():
    plane = Plane(None, split=ALL)
    (wire,) = await send(plane, "x-unit-id: a\r\n")
    wire.connection.connection_lost(None)
    assert ends_of(plane, "canary") == ({"abandoned": 1}, 1)
    plane.triton.finish(0)
    window = plane.windows()["canary"]
    # The version did answer, which counts for its latency, but the request has ended.
    assert (window.requests, window.ends.total, window.unanswered) == (1, 0, 0)


async def test_an_explicit_version_counts_its_ends_and_no_clusters():
    plane = Plane(by_version(v2=BOOM), split=ALL)
    await plane.ask("/v2/models/sums/versions/2/infer", headers="x-unit-id: a\r\n")
    window = plane.windows()["explicit"]
    assert (window.ends.failed, window.unanswered, window.clusters) == (1, 1, {})


async def test_a_request_without_a_decision_is_not_assigned():
    plane = Plane(stable=None)
    assert (await plane.ask()).status == 503
    assert (await plane.ask("/v2/models/sums/versions/7/infer")).status == 404
    assert plane.windows() == {}


async def test_an_error_while_a_request_is_queued_is_its_end():
    plane = Plane(split=ALL)
    batcher = runtime(plane, "2").batcher
    batcher._queue = None
    answer = await plane.ask()
    assert (answer.status, answer.headers["x-interlock-version"]) == (200, "1")
    assert ends_of(plane, "canary") == ({"fell_back": 1}, 1)


# --- clusters ------------------------------------------------------------------------------------


async def cluster(plane, headers="", peer=("10.0.0.1", 5)):
    wire = Wire(answer=plane.application)
    wire.transport.peer = peer
    wire.feed(request(INFER, body(ROW), headers))
    await asyncio.sleep(0.01)
    assert wire.statuses == [200]
    (number,) = plane.windows()["canary"].clusters
    return number


async def test_a_units_cluster_is_that_of_its_bucket():
    plane = Plane(split=ALL)
    for unit in "abc":
        result = await cluster(plane, f"x-unit-id: {unit}\r\n")
        assert result == bucket("s", unit) % CLUSTERS


async def test_requests_without_a_unit_share_the_cluster_of_their_address():
    plane = Plane(split=ALL)
    for address in ("10.0.0.1", "10.0.0.2", "::1"):
        clusters = {await cluster(plane, peer=(address, port)) for port in (1, 2)}
        assert clusters == {cluster_of(address.encode())}
    assert await cluster(plane, peer=None) == cluster_of(b"")


async def test_requests_without_a_unit_share_the_cluster_of_their_api_key():
    plane = Plane()
    tenants = {"shop": Tenant(keys=(sha256(b"k1").hexdigest(), sha256(b"k2").hexdigest()))}
    applied = table(model(split=ALL), 2)
    plane.serving.apply(msgspec.structs.replace(applied, tenants=tenants))
    clusters = [await cluster(plane, f"x-api-key: {key}\r\n") for key in ("k1", "k2")]
    assert clusters == [cluster_of(b"k1"), cluster_of(b"k2")]
    assert await cluster(plane, "authorization: Bearer k2\r\n") == cluster_of(b"k2")
