import asyncio
from contextlib import asynccontextmanager

import pytest
import redis.asyncio as redis

from contract.messages import (
    FIELD,
    STREAM_EXPOSURES,
    STREAM_OUTCOMES,
    STREAM_TELEMETRY,
    Outcome,
    decode_batch,
)
from dataplane import stream
from dataplane.spool import Spool
from dataplane.stream import OutcomesRefused, Publisher
from dataplane.telemetry import Telemetry
from tests.dataplane.worlds import running

KEY = ("m", "1", "stable", 1, "")


def outcome(number):
    return Outcome(event_id=f"e{number}", unit_id="u", metric="m", value=1.0, occurred_at_ms=number)


@asynccontextmanager
async def publishing(valkey, folder, bytes_max=10_000, stream_bytes_max=10_000_000):
    client = redis.Redis.from_url(valkey.url, socket_connect_timeout=1)
    telemetry = Telemetry(lambda: 1_000.0)
    publisher = Publisher(
        Spool(folder, bytes_max), client, telemetry,
        instance="dp", boot="b1", interval_s=0.02, generation=lambda: 1,
        stream_bytes_max=stream_bytes_max,
    )  # fmt: skip
    publisher.telemetry = telemetry
    publisher.client = client
    try:
        yield publisher
    finally:
        await client.aclose()


async def entries(publisher, name):
    rows = await publisher.client.xrange(name)
    return [decode_batch(fields[FIELD]) for _, fields in rows]


async def test_windows_and_exposures_arrive_with_their_sequences(valkey, tmp_path):
    async with publishing(valkey, tmp_path / "spool") as publisher:
        for _ in range(2):
            publisher.telemetry.counter(KEY).answered("u", 10.0)
            await publisher.flush_telemetry()
        publisher.telemetry.expose("e1", "u", "a", "1")
        await publisher.flush_telemetry()
        await publisher.send_spooled()
        windows = await entries(publisher, STREAM_TELEMETRY)
        assert [(b.instance, b.boot, b.sequence) for b in windows] == [
            ("dp", "b1", 1),
            ("dp", "b1", 2),
        ]
        assert [b.windows[0].units for b in windows] == [1, 0]
        (exposed,) = await entries(publisher, STREAM_EXPOSURES)
        assert exposed.exposures[0].unit == "u"


async def test_outcomes_are_confirmed_only_when_they_are_on_disk(valkey, tmp_path):
    async with publishing(valkey, tmp_path / "spool") as publisher:
        stored = publisher.accept([outcome(1)])
        assert not stored.done()
        await publisher.store_outcomes()
        await stored
        _, (record,) = Spool(tmp_path / "spool", 10_000).oldest()
        assert decode_batch(record.payload).outcomes == (outcome(1),)


async def test_outcomes_of_many_requests_become_one_batch(valkey, tmp_path):
    async with publishing(valkey, tmp_path / "spool", bytes_max=1_000_000) as publisher:
        promises = [publisher.accept([outcome(number)]) for number in range(1_500)]
        await publisher.store_outcomes()
        await asyncio.gather(*promises)
        await publisher.send_spooled()
        batches = await entries(publisher, STREAM_OUTCOMES)
        assert [len(b.outcomes) for b in batches] == [1_000, 500]
        assert batches[1].outcomes[-1] == outcome(1_499)


async def send(publisher, number):
    publisher.accept([outcome(number)] * 100)
    await publisher.store_outcomes()
    await publisher.send_spooled()


async def used_bytes(publisher, name):
    return await publisher.client.memory_usage(name) or 0


async def test_outcomes_that_are_not_consumed_are_kept_and_never_trimmed(valkey, tmp_path):
    allowed = 50_000
    async with publishing(valkey, tmp_path / "spool", 1_000_000, allowed) as publisher:
        sent = 0
        while await used_bytes(publisher, STREAM_OUTCOMES) < allowed:
            await send(publisher, sent)
            sent += 1
        with pytest.raises(redis.RedisError, match=f"{sent} batches of outcomes take"):
            await send(publisher, sent)
        batches = await entries(publisher, STREAM_OUTCOMES)
        assert [batch.outcomes[0].event_id for batch in batches] == [f"e{n}" for n in range(sent)]
        # A batch that was accepted may itself exceed the limit.
        assert allowed <= await used_bytes(publisher, STREAM_OUTCOMES) < allowed + 20_000

        await publisher.client.delete(STREAM_OUTCOMES)
        await publisher.send_spooled()
        (batch,) = await entries(publisher, STREAM_OUTCOMES)
        assert batch.outcomes[0] == outcome(sent)


@pytest.mark.parametrize(("size", "together"), [(10, 100), (1_000, 10)])
async def test_telemetry_that_is_not_consumed_is_trimmed(valkey, tmp_path, size, together):
    """The limit is Redis' memory, whatever the size of entries."""
    allowed = 200_000
    async with publishing(valkey, tmp_path / "spool", 1_000_000, allowed) as publisher:
        for number in range(4 * allowed // (size + 60) // together * together):
            publisher.telemetry.expose(f"{number:0{size}}", "u", "a", "1")
            if number % together == together - 1:
                await publisher.flush_telemetry()
                await publisher.send_spooled()
        kept = await entries(publisher, STREAM_EXPOSURES)
        assert int(kept[-1].exposures[-1].experiment) == number
        assert kept[0].sequence > 1
        assert 0.5 * allowed < await used_bytes(publisher, STREAM_EXPOSURES) < 1.2 * allowed


async def test_messages_that_waited_for_redis_arrive_in_order(valkey, tmp_path):
    async with publishing(valkey, tmp_path / "spool") as publisher:
        valkey.stop()
        for number in range(3):
            publisher.accept([outcome(number)])
            await publisher.store_outcomes()
        with pytest.raises(redis.RedisError):
            await publisher.send_spooled()
        valkey.start()
        await publisher.send_spooled()
        batches = await entries(publisher, STREAM_OUTCOMES)
        assert [b.outcomes[0].event_id for b in batches] == ["e0", "e1", "e2"]
        assert publisher.spool_bytes == 0


async def test_a_restart_sends_what_the_previous_process_could_not(valkey, tmp_path):
    async with publishing(valkey, tmp_path / "spool") as before:
        before.accept([outcome(1)])
        await before.store_outcomes()
    async with publishing(valkey, tmp_path / "spool") as after:
        await after.send_spooled()
        assert len(await entries(after, STREAM_OUTCOMES)) == 1


async def test_telemetry_beyond_the_bound_is_dropped_and_counted(valkey, tmp_path):
    async with publishing(valkey, tmp_path / "spool", bytes_max=10) as publisher:
        publisher.telemetry.counter(KEY).answered("u", 10.0)
        await publisher.flush_telemetry()
        assert publisher.dropped[STREAM_TELEMETRY] == 1


async def test_outcomes_beyond_the_bound_are_refused_not_dropped(valkey, tmp_path):
    async with publishing(valkey, tmp_path / "spool", bytes_max=10) as publisher:
        stored = publisher.accept([outcome(1)])
        await publisher.store_outcomes()
        with pytest.raises(OutcomesRefused):
            await stored
        assert publisher.dropped[STREAM_OUTCOMES] == 0


async def test_too_many_waiting_outcomes_are_refused(valkey, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "OUTCOMES_WAITING_MAX", 1)
    async with publishing(valkey, tmp_path / "spool") as publisher:
        with pytest.raises(OutcomesRefused):
            await publisher.accept([outcome(1), outcome(2)])


async def test_the_loops_send_everything_by_themselves(valkey, tmp_path):
    async with publishing(valkey, tmp_path / "spool") as publisher, running(publisher.loops()):
        publisher.telemetry.counter(KEY).answered("u", 10.0)
        await publisher.accept([outcome(1)])
        for name in (STREAM_OUTCOMES, STREAM_TELEMETRY):
            while not await entries(publisher, name):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
