"""The first tier: limits, age, and removed versions."""

from __future__ import annotations

import asyncio

import pytest

from dataplane.cache.entry import OVERHEAD_BYTES, Entry, Scope
from dataplane.cache.local import LocalCache


def entry(size=0, stored_at=0.0, scope=None):
    return Entry(scope or Scope(b"", None), 1, ((),), (b"x" * size,), b"", stored_at)


def cache(entries_max=10, bytes_max=1_000_000):
    return LocalCache(asyncio.get_running_loop(), entries_max, bytes_max)


async def test_it_returns_stored_entries_and_nothing_else():
    local, kept = cache(), entry()
    local.put(b"a", kept)
    assert local.get(b"a", 0.0) is kept
    assert local.get(b"b", 0.0) is None


async def test_beyond_the_entry_limit_the_least_recently_used_is_evicted():
    local = cache(entries_max=2)
    local.put(b"a", entry())
    local.put(b"b", entry())
    local.get(b"a", 0.0)
    local.put(b"c", entry())
    assert [key for key in (b"a", b"b", b"c") if local.get(key, 0.0)] == [b"a", b"c"]
    assert local.evictions == 1


async def test_beyond_the_byte_limit_entries_are_evicted():
    local = cache(entries_max=1_000, bytes_max=10 * (100 + OVERHEAD_BYTES))
    for i in range(10):
        local.put(b"%d" % i, entry(100))
    assert (len(local), local.bytes) == (10, 10 * (100 + OVERHEAD_BYTES))
    local.put(b"large", entry(150))
    assert (len(local), local.get(b"0", 0.0)) == (9, None)
    assert local.bytes == 8 * (100 + OVERHEAD_BYTES) + 150 + OVERHEAD_BYTES


async def test_the_bytes_are_right_after_anything():
    local = cache(entries_max=3, bytes_max=100_000)
    for i in range(50):
        local.put(b"%d" % (i % 7), entry(i, stored_at=float(i)))
        local.get(b"%d" % (i % 5), i - 3.0)
    left = [local.get(b"%d" % i, 0.0) for i in range(7)]
    assert local.bytes == sum(kept.size for kept in left if kept is not None)


async def test_an_entry_that_is_too_large_is_not_kept_and_evicts_none():
    local = cache(bytes_max=8 * (OVERHEAD_BYTES + 100))
    local.put(b"a", entry(100))
    local.put(b"large", entry(101))
    assert [local.get(key, 0.0) is None for key in (b"a", b"large")] == [False, True]


@pytest.mark.parametrize(("oldest_at", "is_hit"), [(4.9, True), (5.0, True), (5.1, False)])
async def test_an_entry_expires(oldest_at, is_hit):
    local = cache()
    local.put(b"a", entry(stored_at=5.0))
    assert (local.get(b"a", oldest_at) is not None) is is_hit
    assert len(local) == is_hit


async def test_entries_of_removed_versions_are_dropped_a_few_at_a_time():
    local = cache(entries_max=5_000, bytes_max=10**8)
    removed, stays = Scope(b"g", None), Scope(b"s", None)
    for i in range(2_000):
        local.put(b"%d" % i, entry(scope=stays if i % 2 else removed))
    removed.alive = False
    local.drop_dead()
    await asyncio.sleep(0)
    assert 1_000 < len(local) < 2_000
    for _ in range(6):
        await asyncio.sleep(0)
    assert len(local) == 1_000
    assert local.bytes == 1_000 * OVERHEAD_BYTES


async def test_a_second_sweep_takes_over_from_a_running_one():
    local = cache(entries_max=5_000, bytes_max=10**8)
    scopes = [Scope(b"1", None), Scope(b"2", None)]
    for i in range(2_000):
        local.put(b"%d" % i, entry(scope=scopes[i % 2]))
    for scope in scopes:
        scope.alive = False
        local.drop_dead()
        await asyncio.sleep(0)
    for _ in range(6):
        await asyncio.sleep(0)
    assert (len(local), local.bytes) == (0, 0)


async def test_no_entry_of_a_removed_version_is_added():
    local, removed = cache(), Scope(b"g", None)
    removed.alive = False
    local.put(b"a", entry(scope=removed))
    assert len(local) == 0
