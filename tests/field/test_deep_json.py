"""Eight concurrent requests of 14.6 kB that unpack to 15 MB of `[],[],…`, without a key."""

import asyncio
import gzip
from time import monotonic

import httpx
import pytest

from bench.attackers import packed_lists
from tests.dataplane.conftest import valkey
from tests.dataplane.control import an_instance, applied
from tests.dataplane.worlds import body

__all__ = ["valkey"]

HEADERS = {"content-encoding": "gzip"}


@pytest.mark.parametrize("path", ["/v2/models/sums/infer", "/predict", "/outcomes"])
async def test_eight_concurrent_requests_get_400_and_do_not_affect_others(valkey, tmp_path, path):
    packed = packed_lists()
    assert len(packed) < 15_000
    assert len(gzip.decompress(packed)) > 15_000_000
    async with an_instance(valkey, tmp_path) as (instance, client, _, _):
        await applied(instance)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(client.post(path, content=packed, headers=HEADERS, timeout=20))
                for _ in range(8)
            ]
            other = group.create_task(_timed(client))
        assert [task.result().status_code for task in tasks] == [400] * 8
        assert other.result() < 0.5


async def _timed(client: httpx.AsyncClient) -> float:
    began_at = monotonic()
    response = await client.post("/v2/models/sums/infer", content=body([1.0, 2.0, 3.0, 4.0]))
    assert response.status_code == 200
    return monotonic() - began_at
