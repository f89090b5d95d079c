"""Batches waited for 5 s by default, and one loop was blocked in predict (kserve's batcher)."""

from __future__ import annotations

import asyncio
import time

from contract.routing import Batching
from tests.dataplane.shadow.shades import shades

PATIENT = Batching(max_batch_size=4, max_queue_delay_us=1_500_000, max_queue_size=64)


def test_by_default_a_request_waits_at_most_five_milliseconds_for_a_batch():
    assert Batching().max_queue_delay_us == 5_000


async def test_an_idle_version_answers_at_once_whatever_the_delay():
    async with shades(shadow=None, batching=PATIENT) as plane:
        began = time.monotonic()
        for _ in range(5):
            assert (await plane.ask()).status == 200
        assert time.monotonic() - began < 1.0


async def test_several_batches_are_in_flight_at_once():
    async with shades(shadow=None) as plane:
        plane.live.delay_s = 0.3
        asking = asyncio.gather(*(plane.ask() for _ in range(16)))
        await asyncio.sleep(0.15)
        # No batch has a response yet.
        assert len(plane.live.requests) > 1
        assert {answer.status for answer in await asking} == {200}


async def test_a_hanging_version_does_not_delay_others():
    async with shades(shadow=None, timeout_ms=1_500) as plane:
        plane.live.script = ["hang"]
        stuck = asyncio.create_task(plane.ask(version="2"))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        for _ in range(10):
            assert (await plane.ask()).status == 200
        assert time.monotonic() - began < 1.0
        assert not stuck.done()
        assert (await stuck).status == 504
