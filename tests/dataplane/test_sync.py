import asyncio

import httpx
import pytest
import redis.asyncio as redis

from contract.generations import first_of
from contract.routing import CHANNEL
from tests.dataplane.control import refusal, syncing
from tests.dataplane.worlds import running, until


async def test_it_applies_a_table_whose_versions_are_ready(tmp_path):
    async with syncing(tmp_path) as (sync, control, serving, upstream):
        control.publish(5, upstream.address)
        await sync.pull()
        assert serving.generation == 5
        await sync.report()
        assert control.reports[-1].applied_generation == 5
        assert control.reports[-1].dropped == {"s": 2}


async def test_it_pulls_a_table_only_once(tmp_path):
    async with syncing(tmp_path) as (sync, control, _, upstream):
        control.publish(5, upstream.address)
        await sync.pull()
        await sync.pull()
        assert control.pulls[0] is None
        assert control.pulls[1] is not None
        assert len(upstream.requests) == 2


async def test_it_refuses_a_version_that_is_not_ready_and_tries_again(tmp_path):
    async with syncing(tmp_path) as (sync, control, serving, upstream):
        control.publish(5, upstream.address)
        upstream.ready = False
        await sync.pull()
        generation, reason = await refusal(sync, control)
        assert (serving.generation, generation) == (0, 5)
        assert f"sums:1 on {upstream.address}: Model version not ready" in reason
        upstream.ready = True
        await sync.pull()
        assert serving.generation == 5
        assert await refusal(sync, control) == (None, None)


async def test_a_version_must_be_ready_on_every_endpoint(tmp_path):
    async with syncing(tmp_path) as (sync, control, serving, upstream):
        control.publish(5, upstream.address, "127.0.0.1:1")
        await sync.pull()
        assert serving.generation == 0
        assert "sums:1 on 127.0.0.1:1" in (await refusal(sync, control))[1]


async def test_it_tests_only_new_versions(tmp_path):
    async with syncing(tmp_path) as (sync, control, serving, upstream):
        control.publish(5, upstream.address)
        await sync.pull()
        upstream.ready = False
        control.publish(6, upstream.address, timeout_ms=77)
        await sync.pull()
        assert serving.generation == 6


async def test_it_follows_a_new_epoch_and_refuses_the_one_before(tmp_path):
    async with syncing(tmp_path) as (sync, control, serving, upstream):
        control.publish(500, upstream.address)
        await sync.pull()
        control.publish(first_of(1), upstream.address)
        await sync.pull()
        assert serving.generation == first_of(1)
        control.publish(501, upstream.address, timeout_ms=77)
        await sync.pull()
        generation, reason = await refusal(sync, control)
        assert (serving.generation, generation) == (first_of(1), 501)
        assert reason == (
            "generation 501 is older than the applied 1 of epoch 1: its control plane was "
            "replaced when epoch 1 began"
        )


async def test_a_refusal_is_cleared_when_the_applied_table_is_confirmed(tmp_path):
    async with syncing(tmp_path) as (sync, control, _, upstream):
        control.publish(first_of(1), upstream.address)
        await sync.pull()
        good = control.data
        control.publish(500, upstream.address)
        await sync.pull()
        assert (await refusal(sync, control))[0] == 500
        control.data = good
        await sync.pull()
        assert await refusal(sync, control) == (None, None)


async def test_a_reused_number_is_a_new_version_that_must_answer(tmp_path):
    async with syncing(tmp_path) as (sync, control, serving, upstream):
        control.publish_created(5, upstream.address, created_at_ms=1)
        await sync.pull()
        upstream.ready = False
        control.publish_created(6, upstream.address, created_at_ms=2)
        await sync.pull()
        assert serving.generation == 5
        control.publish_created(7, upstream.address, created_at_ms=1)
        await sync.pull()
        assert serving.generation == 7


async def test_it_refuses_an_older_table_and_keeps_its_own(tmp_path):
    async with syncing(tmp_path) as (sync, control, serving, upstream):
        control.publish(5, upstream.address)
        await sync.pull()
        control.publish(4, upstream.address)
        await sync.pull()
        assert serving.generation == 5
        assert await refusal(sync, control) == (
            4, "generation 4 is older than the applied 5",
        )  # fmt: skip


async def test_it_refuses_another_table_of_the_same_generation(tmp_path):
    async with syncing(tmp_path) as (sync, control, serving, upstream):
        control.publish(5, upstream.address)
        await sync.pull()
        control.publish(5, upstream.address, stable="2")
        await sync.pull()
        assert serving.table.models["sums"].stable == "1"
        assert "with other content" in (await refusal(sync, control))[1]


@pytest.mark.parametrize("data", [b"{", b"{}", b'{"schema":9}'])
async def test_it_refuses_a_corrupt_table(tmp_path, data):
    async with syncing(tmp_path) as (sync, control, serving, _):
        control.data = data
        await sync.pull()
        assert serving.table is None
        assert "not a routing table" in (await refusal(sync, control))[1]


async def test_an_invalid_endpoint_address_is_a_reason_and_no_crash(tmp_path):
    async with syncing(tmp_path) as (sync, control, serving, _):
        control.publish(5, "host:port")
        await sync.pull()
        assert serving.generation == 0
        assert "endpoint 'host:port'" in (await refusal(sync, control))[1]


async def test_a_start_without_a_control_plane_serves_the_last_good_table(tmp_path):
    async with syncing(tmp_path) as (sync, control, _, upstream):
        control.publish(5, upstream.address)
        await sync.pull()
    async with syncing(tmp_path) as (sync, control, serving, _):
        await sync.start_from_disk()
        control.status = 503
        with pytest.raises(httpx.HTTPStatusError):
            await sync.pull()
        assert serving.generation == 5


async def test_a_damaged_table_on_disk_is_ignored(tmp_path):
    (tmp_path / "table.json").write_bytes(b"{")
    async with syncing(tmp_path) as (sync, _, serving, _):
        await sync.start_from_disk()
        assert serving.table is None


async def test_a_message_wakes_the_poller_and_the_apply_is_reported_at_once(tmp_path, valkey):
    async with syncing(tmp_path, valkey.url) as (sync, control, serving, upstream):
        control.publish(5, upstream.address)
        publisher = redis.Redis.from_url(valkey.url)
        async with running(sync.loops()):
            await until(lambda: serving.generation == 5)
            control.publish(6, upstream.address)
            while await publisher.publish(CHANNEL, "6") == 0:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await until(lambda: any(r.applied_generation == 6 for r in control.reports))
        await publisher.aclose()


async def test_the_poll_finds_changes_without_a_message(tmp_path):
    async with syncing(tmp_path, poll_interval_s=0.02) as (sync, control, serving, upstream):
        control.publish(1, upstream.address)
        async with running(sync.loops()):
            await until(lambda: serving.generation == 1)
            control.publish(5, upstream.address)
            await until(lambda: serving.generation == 5)


async def test_it_pulls_a_delta_and_assembles_the_table(tmp_path):
    async with syncing(tmp_path) as (sync, control, serving, upstream):
        control.sends_deltas = True
        control.publish_many(5, upstream.address, "a", "b", "c")
        await sync.pull()
        assert control.deltas == 0
        control.publish_many(6, upstream.address, "a", "c", "d", timeout_ms=77)
        await sync.pull()
        assert (control.deltas, serving.generation) == (1, 6)
        assert sorted(serving.table.models) == ["a", "c", "d"]
        stored = (tmp_path / "table.json").read_bytes()
        assert stored == control.data


async def test_a_delta_that_does_not_fit_is_refused_and_the_whole_table_is_pulled(tmp_path):
    async with syncing(tmp_path) as (sync, control, serving, upstream):
        control.sends_deltas = True
        control.publish_many(5, upstream.address, "a", "b")
        await sync.pull()
        # The control plane assumes another base table.
        control.publish_many(5, upstream.address, "a", "b", timeout_ms=77)
        control.publish_many(6, upstream.address, "a", "c", timeout_ms=77)
        await sync.pull()
        assert serving.generation == 5
        assert "has another hash" in (await refusal(sync, control))[1]
        await sync.pull()
        assert serving.generation == 6
