"""Windows of shadows are sent with the telemetry; metrics and settings of shadows."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import redis.asyncio as redis

from contract.messages import FIELD, STREAM_TELEMETRY, decode_batch
from contract.routing import Shadow
from dataplane.config import Config
from dataplane.instance import _shadows
from dataplane.metrics import Page
from dataplane.metrics_page import _add_shadows
from dataplane.spool import Spool
from dataplane.stream import Publisher
from dataplane.telemetry import Telemetry
from tests.dataplane.control import TOKEN, an_instance, applied
from tests.dataplane.shadow.shades import ROW, Negating, shades
from tests.dataplane.worlds import body, until


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


async def test_the_metrics_page_shows_the_results_of_copies():
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


async def test_a_whole_instance_copies_within_its_settings(valkey, tmp_path):
    shadow = Shadow(id="sh1", salt="sh", version="2", share_bp=10_000)
    async with an_instance(valkey, tmp_path, shadow=shadow) as (instance, client, _, _):
        await applied(instance)
        for n in range(10):
            headers = {"x-unit-id": f"u{n}"}
            answer = await client.post("/v2/models/sums/infer", content=body(ROW), headers=headers)
            assert answer.status_code == 200
        await until(lambda: instance.shadows.copies == 0)
        page = (await client.get("/metrics", headers=TOKEN)).text
        assert "interlock_shadow_copies_total" in page
    async with redis.Redis.from_url(valkey.url) as client:
        entries = await client.xrange(STREAM_TELEMETRY)
    batches = [decode_batch(fields[FIELD]) for _, fields in entries]
    copies = [w.compared + w.dropped + w.errors for batch in batches for w in batch.shadows]
    on_stable = sum(w.requests for batch in batches for w in batch.windows if w.version == "1")
    assert sum(copies) == on_stable > 0


async def test_the_settings_of_shadows_take_effect():
    names = ("control_url", "instance_token", "instance_name", "redis_url")
    config = Config(
        **dict.fromkeys(names, "x"), bind=("x", 0), state_dir=Path("x"),
        shadow_connections_max=1, shadow_in_flight_max=3, shadow_bytes_max=10_000,
    )  # fmt: skip
    async with shades() as plane:
        plane.shadows = plane.serving.shadows = _shadows(config, asyncio.get_running_loop())
        plane.apply(generation=2)
        plane.shadow.delay_s = 0.1
        await asyncio.gather(*(plane.ask(unit=f"u{n}") for n in range(5)))
        await plane.settled()
        assert plane.results()["budget"] >= 2
        assert plane.shadow.connections == 1
