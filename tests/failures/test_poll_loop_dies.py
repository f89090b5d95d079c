"""One exception ended the poller, and the proxy went on with old data (Flagsmith edge-proxy)."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from dataplane import heartbeat
from tests.dataplane.control import syncing
from tests.dataplane.worlds import running, until


@pytest.mark.parametrize(
    "surprise",
    [RuntimeError("surprise"), httpx.ReadError("reset"), KeyError("etag"), MemoryError()],
    ids=lambda error: type(error).__name__,
)
async def test_the_poller_survives_and_counts_exceptions(tmp_path, monkeypatch, surprise):
    monkeypatch.setattr(heartbeat, "PAUSE_S", 0.01)
    async with syncing(tmp_path, poll_interval_s=0.01) as (sync, control, serving, upstream):
        control.publish(5, upstream.address)
        real, broken = sync._control.get, [surprise] * 3

        async def get(*arguments, **keywords):
            if broken:
                raise broken.pop()
            return await real(*arguments, **keywords)

        monkeypatch.setattr(sync._control, "get", get)
        async with running(sync.loops()):
            await until(lambda: serving.generation == 5)
            control.publish(6, upstream.address)
            await until(lambda: serving.generation == 6)
        assert sync.heartbeats[0].failures == 3
        assert sync.heartbeats[0].trouble is None


@pytest.mark.parametrize("status", [401, 404, 500, 503])
async def test_a_response_without_a_table_does_not_end_the_loop(tmp_path, monkeypatch, status):
    monkeypatch.setattr(heartbeat, "PAUSE_S", 0.01)
    async with syncing(tmp_path, poll_interval_s=0.01) as (sync, control, serving, upstream):
        control.publish(5, upstream.address)
        control.status = status
        async with running(sync.loops()):
            await until(lambda: sync.heartbeats[0].failures > 2)
            assert sync.heartbeats[0].trouble
            control.status = 200
            await until(lambda: serving.generation == 5)


async def test_a_hanging_poller_reports_its_age(tmp_path, monkeypatch):
    async with syncing(tmp_path, poll_interval_s=0.01) as (sync, _, _, _):
        poll = sync.heartbeats[0]

        async def never(*arguments, **keywords):
            await asyncio.Event().wait()

        monkeypatch.setattr(sync._control, "get", never)
        async with running(sync.loops()):
            before = poll.age_s
            await asyncio.sleep(0.1)
            # Readiness depends on this age, and metrics export it.
            assert poll.age_s >= before + 0.09
            assert sync.table_age_s >= 0.09
