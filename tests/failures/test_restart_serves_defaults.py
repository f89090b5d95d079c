"""After a restart every flag was false (ld-relay #141, growthbook-python #21, flagsmith #7207)."""

from __future__ import annotations

import pytest

from contract.routing import Cluster, ExperimentSplit
from tests.dataplane.control import syncing
from tests.dataplane.worlds import EXPERIMENT, canary

USERS = [f"user-{n}" for n in range(300)]


def decisions(serving):
    router = serving.model("sums").router
    return [(router.decide(user).version, router.decide(user).variant) for user in USERS]


@pytest.mark.parametrize("split", [canary(2_500), EXPERIMENT], ids=["canary", "experiment"])
async def test_a_restart_without_a_control_plane_decides_as_before(tmp_path, split):
    async with syncing(tmp_path) as (sync, control, serving, upstream):
        control.publish(5, upstream.address, split=split)
        await sync.pull()
        before = decisions(serving)
        assert len(set(before)) == 2
    async with syncing(tmp_path) as (sync, control, serving, _):
        control.status = 503
        await sync.start_from_disk()
        assert serving.generation == 5
        assert isinstance(serving.table.clusters["main"], Cluster)
        assert decisions(serving) == before


async def test_a_refused_table_does_not_replace_the_last_valid_one_on_disk(tmp_path):
    async with syncing(tmp_path) as (sync, control, _, upstream):
        control.publish(5, upstream.address, split=canary(2_500))
        await sync.pull()
        for data in (b"", b"{}", control.data[:100], b"\x00" * 1_000):
            control.data = data
            await sync.pull()
    async with syncing(tmp_path) as (sync, _, serving, _):
        await sync.start_from_disk()
        assert serving.generation == 5
        assert not isinstance(serving.table.models["sums"].split, ExperimentSplit)


async def test_a_truncated_file_is_not_served(tmp_path):
    async with syncing(tmp_path) as (sync, control, _, upstream):
        control.publish(5, upstream.address)
        await sync.pull()
    (file,) = tmp_path.glob("*.json")
    file.write_bytes(file.read_bytes()[:200])
    async with syncing(tmp_path) as (sync, _, serving, _):
        await sync.start_from_disk()
        # Without a table requests get 503, and readiness fails.
        assert serving.table is None
