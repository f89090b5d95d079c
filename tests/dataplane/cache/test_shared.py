"""The second tier on a real server, and without one."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager

import pytest
import redis.asyncio as redis

from contract.routing import Cache as Settings
from dataplane.cache import SharedCache, shared_client
from dataplane.cache import shared as module
from dataplane.cache.shared import FAILURES_MAX, PREFIX, WAITING_MAX
from tests.dataplane.cache.worlds import ROW, Plane
from tests.dataplane.wire import Answer
from tests.dataplane.worlds import body, until

SHARED = Settings(ttl_s=60, shared=True)
KEY = b"k" * 16
CLOSED = "redis://127.0.0.1:1/0"


class RecordingLookup:
    """A lookup that records its values and when they came."""

    def __init__(self):
        self.values = []
        self.done = asyncio.get_running_loop().create_future()

    def on_value(self, value):
        self.values.append(value)
        self.done.set_result(value)


@asynccontextmanager
async def shared(url, timeout_s=1.0):
    cache = SharedCache(shared_client(url), asyncio.get_running_loop(), timeout_s)
    yield cache
    await cache.close()


async def ask(cache, key=KEY):
    lookup = RecordingLookup()
    return await lookup.done if cache.look_up(key, lookup) else None


async def stored(cache, key, value, ttl_s=60):
    cache.store(key, value, ttl_s)
    await until(lambda: not cache._writes and not cache._calls)


async def test_stored_values_have_a_lifetime_with_jitter(valkey):
    async with shared(valkey.url) as cache, redis.Redis.from_url(valkey.url) as client:
        assert await ask(cache) is None
        for i in range(20):
            cache.store(b"%016d" % i, b"value", 60)
        await stored(cache, KEY, b"value")
        assert await ask(cache) == b"value"
        lives = [await client.pttl(PREFIX + (b"%016d" % i).hex().encode()) for i in range(20)]
        assert all(53_000 < life <= 66_000 for life in lives)
        assert len(set(lives)) > 10
        assert cache.failures == dict.fromkeys(cache.failures, 0)


async def test_one_turn_is_one_call(valkey):
    async with shared(valkey.url) as cache, redis.Redis.from_url(valkey.url) as client:
        await ask(cache)
        for i in range(50):
            cache.store(b"%016d" % i, b"v%d" % i, 60)
        await stored(cache, KEY, b"value")
        before = (await client.info("commandstats"))["cmdstat_mget"]["calls"]
        lookups = [RecordingLookup() for _ in range(50)]
        assert all(cache.look_up(b"%016d" % i, lookups[i]) for i in range(50))
        assert await asyncio.gather(*(a.done for a in lookups)) == [b"v%d" % i for i in range(50)]
        after = (await client.info("commandstats"))["cmdstat_mget"]["calls"]
        assert after - before == 1


async def test_a_server_that_hangs_is_a_miss_at_the_deadline_and_then_not_called(valkey):
    async with shared(valkey.url, 0.02) as cache:
        await ask(cache)
        os.kill(valkey._process.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            for _ in range(FAILURES_MAX):
                assert await ask(cache) is None
            assert time.monotonic() - began < 0.5
            assert cache.failures["timeout"] == FAILURES_MAX
            assert cache.look_up(KEY, RecordingLookup()) is False
            cache.store(KEY, b"value", 60)
            assert cache._writes == {}
        finally:
            os.kill(valkey._process.pid, signal.SIGCONT)


async def test_a_dead_server_is_called_seldom_and_a_live_one_again(valkey, monkeypatch):
    monkeypatch.setattr(module, "BACK_OFF_MIN_S", 0.05)
    monkeypatch.setattr(module, "BACK_OFF_MAX_S", 0.1)
    async with shared(valkey.url) as cache:
        await ask(cache)
        valkey.stop()
        for _ in range(50):
            await ask(cache)
        assert cache.failures["error"] == FAILURES_MAX
        valkey.start()
        await asyncio.sleep(0.15)
        await ask(cache)
        await stored(cache, KEY, b"value")
        assert await ask(cache) == b"value"


async def test_one_call_tries_again_during_a_pause(monkeypatch):
    monkeypatch.setattr(module, "BACK_OFF_MIN_S", 0.0)
    async with shared(CLOSED) as cache:
        for _ in range(FAILURES_MAX):
            await ask(cache)
        await until(lambda: not cache._calls)
        lookups = [RecordingLookup() for _ in range(3)]
        assert [cache.look_up(KEY, each) for each in lookups] == [True] * 3
        await asyncio.sleep(0)
        assert cache.look_up(KEY, RecordingLookup()) is False
        assert [await each.done for each in lookups] == [None] * 3
        assert cache.failures["error"] == FAILURES_MAX + 1


async def test_lookups_and_writes_are_limited(valkey):
    async with shared(valkey.url) as cache:
        lookups = [RecordingLookup() for _ in range(WAITING_MAX)]
        assert all(cache.look_up(KEY, each) for each in lookups)
        assert cache.look_up(KEY, RecordingLookup()) is False
        for i in range(module.WRITES_MAX + 5):
            cache.store(b"%016d" % i, b"v", 60)
        assert cache.failures["dropped"] == 5
        cache.store(b"x", bytes(module.VALUE_BYTES_MAX + 1), 60)
        await asyncio.gather(*(each.done for each in lookups))
        assert all(each.values == [None] for each in lookups)


async def test_the_writes_of_one_call_are_limited(valkey, monkeypatch):
    monkeypatch.setattr(module, "KEYS_MAX", 3)
    client = shared_client(valkey.url)
    pipelines = []
    pipeline = client.pipeline

    def counted(**options):
        pipelines.append(pipeline(**options))
        return pipelines[-1]

    monkeypatch.setattr(client, "pipeline", counted)
    cache = SharedCache(client, asyncio.get_running_loop(), 1.0)
    for i in range(7):
        cache.store(b"%016d" % i, b"v%d" % i, 60)
    await stored(cache, KEY, b"value")
    assert [await ask(cache, b"%016d" % i) for i in range(7)] == [b"v%d" % i for i in range(7)]
    assert len(pipelines) == 3
    await cache.close()


async def test_a_full_server_loses_only_the_value(valkey):
    async with shared(valkey.url) as cache, redis.Redis.from_url(valkey.url) as client:
        await client.config_set("maxmemory", "1")
        await stored(cache, KEY, b"value")
        assert cache.failures["error"] == 1
        assert await ask(cache) is None


async def test_closing_ends_waiting_lookups(valkey):
    cache = SharedCache(shared_client(valkey.url), asyncio.get_running_loop(), 5.0)
    os.kill(valkey._process.pid, signal.SIGSTOP)
    lookups = [RecordingLookup(), RecordingLookup()]
    cache.look_up(KEY, lookups[0])
    await asyncio.sleep(0.05)
    cache.look_up(KEY, lookups[1])
    try:
        await cache.close()
        assert [each.values for each in lookups] == [[None], [None]]
    finally:
        os.kill(valkey._process.pid, signal.SIGCONT)


# --- through predictions -------------------------------------------------------------------------


async def asked_of(plane, *args, **named):
    wire = plane.send(*args, **named)
    await until(lambda: wire.statuses != [])
    return Answer(wire.transport.written)


async def filled(plane):
    await until(lambda: not plane.cache.shared._writes and not plane.cache.shared._calls)


async def test_instances_share_answers(valkey):
    async with shared(valkey.url) as one, shared(valkey.url) as other:
        first, second = (Plane(shared=each, cache=SHARED) for each in (one, other))
        computed = await asked_of(first)
        await filled(first)
        answers = [await asked_of(second) for _ in range(2)]
        assert [a.state for a in (computed, *answers)] == ["miss", "l2", "l1"]
        assert {answer.body for answer in (computed, *answers)} == {computed.body}
        assert second.calls == 0
        ((_, _, stats, _),) = second.serving.stats()
        assert (stats.cache_hits, stats.cache_misses) == ({"l2": 1, "l1": 1}, 0)


async def test_requests_that_wait_for_the_second_tier_get_its_answer(valkey):
    async with shared(valkey.url) as one, shared(valkey.url) as other:
        first, second = (Plane(shared=each, cache=SHARED) for each in (one, other))
        await asked_of(first)
        await filled(first)
        wires = [second.send(body(ROW, id=f"r{i}")) for i in range(3)]
        await until(lambda: all(wire.statuses == [200] for wire in wires))
        answers = [Answer(wire.transport.written) for wire in wires]
        assert [answer.state for answer in answers] == ["l2"] * 3
        assert [answer.json["id"] for answer in answers] == ["r0", "r1", "r2"]


async def test_a_model_that_does_not_share_does_not_use_redis(valkey):
    async with shared(valkey.url) as cache, redis.Redis.from_url(valkey.url) as client:
        plane = Plane(shared=cache)
        await asked_of(plane)
        await asyncio.sleep(0.05)
        assert await client.keys("*") == []


@pytest.mark.parametrize("value", [b"", b"noise", b"\0" * 64])
async def test_a_corrupt_value_is_a_miss_and_is_replaced_in_time(valkey, value):
    async with shared(valkey.url) as cache, redis.Redis.from_url(valkey.url) as client:
        plane = Plane(shared=cache, cache=SHARED)
        await asked_of(plane)
        await filled(plane)
        (name,) = await client.keys(PREFIX.decode() + "*")
        good = await client.getset(name, value)
        other = Plane(shared=cache, cache=SHARED)
        assert (await asked_of(other)).state == "miss"
        assert cache.failures["corrupt"] == 1
        await filled(other)
        assert len(await client.get(name)) == len(good)


async def test_a_killed_redis_fails_no_request(valkey):
    async with shared(valkey.url, 0.02) as cache:
        plane = Plane(shared=cache, cache=SHARED)
        await asked_of(plane)
        for i in range(60):
            if i == 20:
                valkey.stop()
            answer = await asked_of(plane, body([float(i % 30), 0, 0, 0]))
            assert (answer.status, answer.state) == (200, "miss" if i < 30 else "l1")
        assert 0 < sum(cache.failures.values()) <= FAILURES_MAX + 12


async def test_an_answer_too_old_for_the_model_is_a_miss(valkey):
    async with shared(valkey.url) as cache:
        plane = Plane(shared=cache, cache=SHARED)
        await asked_of(plane)
        await filled(plane)
        await asyncio.sleep(0.01)
        other = Plane(shared=cache, cache=Settings(ttl_s=0, shared=True))
        assert (await asked_of(other)).state == "miss"
