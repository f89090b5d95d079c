"""Windows of shadows leave with the telemetry; the page of metrics and the settings know them."""

from __future__ import annotations

import time

import redis.asyncio as redis

from contract.messages import FIELD, STREAM_TELEMETRY, decode_batch
from dataplane.metrics import Page
from dataplane.pages import _add_shadows
from dataplane.spool import Spool
from dataplane.stream import Publisher
from dataplane.telemetry import Telemetry
from tests.dataplane.shadow.shades import Negating, shades


def publisher_of(plane, folder, client, bytes_max=100_000):
    return Publisher(
        Spool(folder, bytes_max), client, Telemetry(time.time),
        instance="dp", boot="b1", interval_s=1.0, generation=lambda: 1,
        shadows=plane.shadows.drain,
    )  # fmt: skip


async def test_windows_of_shadows_arrive_in_batches_of_their_own(valkey, tmp_path):
    async with shades(Negating()) as plane, redis.Redis.from_url(valkey.url) as client:
        publisher = publisher_of(plane, tmp_path / "spool", client)
        await plane.ask(unit="u")
        await plane.settled()
        await publisher.flush_telemetry()
        await publisher.flush_telemetry()
        await publisher.send_spooled()
        entries = await client.xrange(STREAM_TELEMETRY)
        (batch,) = [decode_batch(fields[FIELD]) for _, fields in entries]
        assert (batch.sequence, batch.windows) == (1, ())
        assert [(w.shadow, w.compared, w.flips) for w in batch.shadows] == [("sh1", 1, 1)]


async def test_windows_of_shadows_beyond_the_spool_are_dropped_and_counted(valkey, tmp_path):
    async with shades() as plane, redis.Redis.from_url(valkey.url) as client:
        publisher = publisher_of(plane, tmp_path / "spool", client, bytes_max=10)
        await plane.ask(unit="u")
        await plane.settled()
        await publisher.flush_telemetry()
        assert publisher.dropped[STREAM_TELEMETRY] == 1


async def test_the_metrics_page_shows_what_became_of_copies():
    async with shades() as plane:
        await plane.ask(unit="u")
        await plane.settled()
        page = Page()
        _add_shadows(page, plane.shadows)
        text = page.text().decode()
    labels = 'model_name="sums",model_version="3"'
    assert f'interlock_shadow_copies_total{{{labels},result="compared"}} 1' in text
    assert f"interlock_shadow_breaker_state{{{labels}}} 0" in text
    assert f"interlock_shadow_breaker_trips_total{{{labels}}} 0" in text
    assert "interlock_shadow_in_flight 0" in text
    assert "interlock_shadow_bytes 0" in text
