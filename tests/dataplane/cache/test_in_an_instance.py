"""The cache of whole instances on real sockets, with its settings."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest

from contract.routing import Cache as Settings
from dataplane.config import load
from dataplane.instance import Instance
from tests.dataplane.control import TOKEN
from tests.dataplane.worlds import Upstream, body, model, table, until

INFER = "/v2/models/sums/infer"
SHARED = Settings(ttl_s=60, shared=True)


@asynccontextmanager
async def an_instance(valkey, folder, upstream, cache=SHARED, **settings):
    environment = {
        "INTERLOCK_BIND": "127.0.0.1:0",
        "INTERLOCK_CONTROL_URL": "http://127.0.0.1:1",
        "INTERLOCK_INSTANCE_TOKEN": "t",
        "INTERLOCK_INSTANCE_NAME": "dp",
        "INTERLOCK_STATE_DIR": str(folder),
        "INTERLOCK_OPERATOR_TOKEN": "pager",
        "INTERLOCK_STOP_TIMEOUT_S": "3",
        "REDIS_URL": valkey.url,
    }
    config = load(environment | {f"INTERLOCK_CACHE_{k}": v for k, v in settings.items()})
    instance = Instance(config, asyncio.get_running_loop())
    port = await instance.start()
    instance.serving.apply(table(model(cache=cache), 1, (upstream.address,)))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        yield instance, client
    await instance.stop()


async def state(client, first=1.0):
    answer = await client.post(INFER, content=body([first, 2, 3, 4]))
    assert answer.status_code == 200
    return answer.headers["x-interlock-cache"]


async def test_two_instances_share_answers_and_do_without_redis(valkey, tmp_path):
    async with (
        Upstream() as upstream,
        # A busy machine may take longer than the usual deadline of a lookup.
        an_instance(valkey, tmp_path / "a", upstream, TIMEOUT_MS="2000") as (one, first),
        an_instance(valkey, tmp_path / "b", upstream, TIMEOUT_MS="2000") as (_, second),
    ):
        assert await state(first) == "miss"
        await until(lambda: not one.cache.shared._writes and not one.cache.shared._calls)
        assert [await state(second) for _ in range(2)] == ["l2", "l1"]
        valkey.stop()
        assert await state(second) == "l1"
        assert [await state(second, 7.0) for _ in range(2)] == ["miss", "l1"]
        page = (await second.get("/metrics", headers=TOKEN)).text
        assert 'interlock_cache_hits_total{model_name="sums",model_version="1",tier="l2"} 1' in page


@pytest.mark.parametrize(
    "settings", [{"ENTRIES_MAX": "1"}, {"BYTES_MAX": "8000"}, {"BYTES_MAX": "100"}]
)
async def test_the_limits_are_those_of_the_settings(valkey, tmp_path, settings):
    local = Settings(ttl_s=60)
    async with (
        Upstream() as upstream,
        an_instance(valkey, tmp_path, upstream, local, **settings) as (instance, client),
    ):
        for i in range(30):
            await state(client, float(i))
        count = len(instance.cache.local)
        assert count == (1 if "ENTRIES_MAX" in settings else count)
        assert instance.cache.local.bytes <= int(settings.get("BYTES_MAX", "10000"))
        assert await state(client, 29.0) == ("l1" if count else "miss")


async def test_a_lookup_takes_no_longer_than_the_setting(valkey, tmp_path):
    async with (
        Upstream() as upstream,
        an_instance(valkey, tmp_path, upstream, TIMEOUT_MS="7") as (instance, _),
    ):
        assert instance.cache.shared._timeout_s == pytest.approx(0.007)
