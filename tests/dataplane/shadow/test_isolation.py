"""Whatever a shadow does, live requests are answered and never wait for it."""

import asyncio
import time

import pytest

from contract.routing import Breaker
from tests.dataplane.shadow.shades import SHADOW, shades
from tests.dataplane.worlds import until


def answer(status, content):
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(content), content)


ERROR = answer(500, b'{"error":"boom"}')
REFUSED = answer(400, b'{"error":"no"}')
CRASHED = answer(500, b'{"error":"Stub process is not healthy"}')
GARBAGE = b"\x00\xff not HTTP at all\r\n\r\n"
EMPTY = answer(200, b"{}")
FAULTS = {
    "hangs": "hang",
    "closes": "close",
    "cuts answers": "cut",
    "half-closes": "half-close",
    "fails": ERROR,
    "refuses": REFUSED,
    "crashed": CRASHED,
    "speaks no HTTP": GARBAGE,
    "answers nothing": EMPTY,
}
# A breaker that opens after two failures, and stays open for the length of a test.
SHY = Breaker(window=4, failures=2, open_ms=60_000)


async def ask_many(plane, count=60, at_once=6):
    """Send requests in rounds and check every answer; return the slowest round in seconds."""
    slowest = 0.0
    for first in range(0, count, at_once):
        began = time.monotonic()
        answers = await asyncio.gather(
            *(plane.ask([float(n), 0, 0, 1], unit=f"u{n}") for n in range(first, first + at_once))
        )
        slowest = max(slowest, time.monotonic() - began)
        for n, answer in enumerate(answers, first):
            assert answer.status == 200
            assert answer.json["outputs"][0]["data"] == [n + 1.0]
    return slowest


@pytest.mark.parametrize("fault", FAULTS)
async def test_live_requests_are_isolated_from_a_shadow_that(fault):
    async with shades(timeout_ms=1_500) as plane:
        plane.shadow.always = FAULTS[fault]
        slowest = await ask_many(plane)
        # A request that waited for the shadow would have waited until the deadline.
        assert slowest < 1.0
        assert plane.breaker_of_stable().calm
        assert plane.serving.trips == ()
        await plane.settled()
        results = plane.results()
        assert results.keys() <= {"failed", "breaker_open", "budget"}
        assert results["failed"] >= 1
        assert sum(results.values()) == 60
        assert {w.version for w in plane.telemetry.drain(1)[0]} == {"1"}


async def test_live_requests_are_isolated_from_a_shadow_without_an_endpoint():
    async with shades() as plane:
        await plane.shadow.stop()
        assert await ask_many(plane) < 1.0
        await plane.settled()
        assert plane.results()["failed"] >= 1
        assert plane.serving.trips == ()


async def test_live_requests_are_isolated_from_a_shadow_that_dies_under_load():
    async with shades() as plane:
        asking = asyncio.create_task(ask_many(plane, 300))
        await until(lambda: plane.results().get("compared", 0) > 20)
        await plane.shadow.stop()
        assert await asking < 1.0
        await plane.settled()
        results = plane.results()
        assert results["failed"] >= 1
        assert sum(results.values()) == 300


async def test_live_requests_are_isolated_from_a_shadow_that_is_slow_and_overloaded():
    async with shades(settings={"copies_max": 8}) as plane:
        plane.shadow.delay_s = 0.2
        assert await ask_many(plane, 200, 50) < 1.0
        await plane.settled()
        results = plane.results()
        assert results["budget"] >= 100
        assert results["compared"] >= 8


async def test_a_copy_that_never_left_its_queue_is_no_failure_of_the_shadow():
    async with shades(settings={"batches_max": 1}, timeout_ms=400) as plane:
        plane.shadow.always = "hang"
        await plane.ask(unit="a")
        await until(lambda: len(plane.shadow.requests) == 1)
        # The timeout of the next copy is shorter than the time of the one before.
        plane.apply(generation=2, timeout_ms=100)
        await plane.ask(unit="b")
        await plane.settled()
        assert plane.results() == {"failed": 1, "budget": 1}
        assert len(plane.shadow.requests) == 1


async def test_the_connections_of_a_shadow_are_limited():
    async with shades(settings={"batches_max": 50}) as plane:
        plane.shadow.delay_s = 0.01
        await ask_many(plane, 100, 25)
        await plane.settled()
        # Live requests use other connections.
        assert plane.shadow.connections == 2


@pytest.mark.parametrize("fault", ["fails", "crashed", "closes"])
async def test_a_dead_shadow_is_not_hammered(fault):
    async with shades(breaker=SHY) as plane:
        plane.shadow.always = FAULTS[fault]
        for n in range(40):
            await plane.ask(unit=f"u{n}")
            await plane.settled()
        ((_, _, runtime),) = plane.shadows.runtimes()
        assert (runtime.stats.trips, runtime.breaker.state.name) == (1, "OPEN")
        assert plane.results() == {"failed": 2, "breaker_open": 38}
        assert len(plane.shadow.requests) <= 4
        (window,) = plane.shadows.drain()
        assert (window.errors, window.dropped, window.compared) == (2, 38, 0)


async def test_a_shadow_that_recovers_gets_copies_again():
    async with shades(breaker=Breaker(window=4, failures=2, open_ms=30)) as plane:
        plane.shadow.script = [ERROR, ERROR]
        while plane.results().get("compared", 0) < 3:
            await plane.ask(unit="u")
            await plane.settled()
            await asyncio.sleep(0.005)
        assert plane.results()["failed"] == 2
        assert plane.results()["breaker_open"] >= 1


async def test_a_copy_that_cannot_be_created_affects_no_request(monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("no copy")

    async with shades() as plane:
        monkeypatch.setattr("dataplane.shadow.mirror.Copy", broken)
        assert await ask_many(plane, 6) < 1.0
        await plane.settled()
        assert "a request could not be copied" in caplog.text
        assert SHADOW.version not in {w.version for w in plane.telemetry.drain(1)[0]}
