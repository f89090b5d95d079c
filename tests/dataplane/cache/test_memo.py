"""The memo of parsed requests."""

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


async def test_its_key_has_everything_that_parsing_depends_on():
    kept, remembered = request(), memo()
    remembered.put(origin(), kept)
    assert remembered.get(origin()) is kept
    assert remembered.get(origin(length=b"3")) is None
    assert remembered.get(("other", b"body", None)) is None


async def test_the_oldest_is_evicted_beyond_the_entry_limit():
    remembered = memo(entries_max=2)
    for i in range(3):
        remembered.put(origin(b"%d" % i), request())
    assert [remembered.get(origin(b"%d" % i)) is None for i in range(3)] == [True, False, False]
    assert remembered.bytes == 2 * (1 + 4 + OVERHEAD_BYTES)


async def test_the_oldest_is_evicted_beyond_the_byte_limit():
    remembered = memo(entries_max=100, bytes_max=10 * (1 + 4 + OVERHEAD_BYTES))
    for i in range(20):
        remembered.put(origin(b"%c" % i), request())
    assert len(remembered) == 10


async def test_a_request_that_is_too_large_is_not_remembered():
    remembered = memo(bytes_max=8 * OVERHEAD_BYTES)
    remembered.put(origin(b"x" * 100), request())
    assert (len(remembered), remembered.bytes) == (0, 0)


async def test_the_same_bytes_are_counted_once():
    remembered = memo()
    for _ in range(2):
        remembered.put(origin(), request())
    assert remembered.bytes == 4 + 4 + OVERHEAD_BYTES


async def test_a_cleared_memo_is_empty_and_usable():
    remembered = memo(entries_max=2_000, bytes_max=10**8)
    for i in range(1_200):
        remembered.put(origin(b"%d" % i), request())
    remembered.clear()
    assert (len(remembered), remembered.bytes, remembered.get(origin(b"1"))) == (0, 0, None)
    remembered.put(origin(), request())
    for _ in range(5):
        await asyncio.sleep(0)
    assert remembered.get(origin()) is not None
