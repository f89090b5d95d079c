"""Requests that were read before."""

from __future__ import annotations

import asyncio

from dataplane.cache.memo import OVERHEAD_BYTES, Memo
from dataplane.codec import InferRequest


def memo(entries_max=10, bytes_max=1_000_000):
    return Memo(asyncio.get_running_loop(), entries_max, bytes_max)


def origin(body=b"body", length=None):
    return ("model", body, length)


def request():
    return InferRequest(1, [b"1234"], None, ((1,),))


async def test_it_remembers_by_all_that_reading_depends_on():
    kept, remembered = request(), memo()
    remembered.put(origin(), kept)
    assert remembered.get(origin()) is kept
    assert remembered.get(origin(length=b"3")) is None
    assert remembered.get(("other", b"body", None)) is None


async def test_the_oldest_leaves_beyond_the_entries():
    remembered = memo(entries_max=2)
    for i in range(3):
        remembered.put(origin(b"%d" % i), request())
    assert [remembered.get(origin(b"%d" % i)) is None for i in range(3)] == [True, False, False]
    assert remembered.bytes == 2 * (1 + 4 + OVERHEAD_BYTES)


async def test_the_oldest_leaves_beyond_the_bytes():
    remembered = memo(entries_max=100, bytes_max=10 * (1 + 4 + OVERHEAD_BYTES))
    for i in range(20):
        remembered.put(origin(b"%c" % i), request())
    assert len(remembered) == 10


async def test_one_too_large_is_not_remembered():
    remembered = memo(bytes_max=8 * OVERHEAD_BYTES)
    remembered.put(origin(b"x" * 100), request())
    assert (len(remembered), remembered.bytes) == (0, 0)


async def test_the_same_bytes_are_counted_once():
    remembered = memo()
    for _ in range(2):
        remembered.put(origin(), request())
    assert remembered.bytes == 4 + 4 + OVERHEAD_BYTES


async def test_cleared_it_knows_nothing_and_goes_on():
    remembered = memo(entries_max=2_000, bytes_max=10**8)
    for i in range(1_200):
        remembered.put(origin(b"%d" % i), request())
    remembered.clear()
    assert (len(remembered), remembered.bytes, remembered.get(origin(b"1"))) == (0, 0, None)
    remembered.put(origin(), request())
    for _ in range(5):
        await asyncio.sleep(0)
    assert remembered.get(origin()) is not None
