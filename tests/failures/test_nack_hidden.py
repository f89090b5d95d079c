"""A refused configuration looked like success (envoyproxy/gateway #9198 #8847, istio #30498)."""

from __future__ import annotations

import pytest

from contract.routing import VersionRoute, encode
from tests.dataplane.control import refusal, syncing
from tests.dataplane.worlds import model, table

NEWER = {
    number: VersionRoute(cluster="main", triton_model=f"sums.{number}", triton_version=number)
    for number in ("1", "3")
}


def contradictory(address):
    route = model(stable="9")
    return encode(table(route, 6, (address,)))


@pytest.mark.parametrize("kind", ["corrupt", "contradictory", "older", "not ready", "unreachable"])
async def test_a_refused_table_is_in_the_next_report_with_its_reason(tmp_path, kind):
    async with syncing(tmp_path) as (sync, control, serving, upstream):
        control.publish(5, upstream.address)
        await sync.pull()
        if kind == "corrupt":
            control.data = control.data[:-9]
        elif kind == "contradictory":
            control.data = contradictory(upstream.address)
        elif kind == "older":
            control.publish(4, upstream.address)
        elif kind == "not ready":
            upstream.ready = False
            control.publish(6, upstream.address, versions=NEWER)
        else:
            control.publish(6, "127.0.0.1:1")
        await sync.pull()
        generation, reason = await refusal(sync, control)
        # The report contains the instance, the generation that it serves, and the reason.
        report = control.reports[-1]
        assert (report.instance, report.applied_generation) == ("dp", 5)
        assert reason
        assert generation in (None, 4, 6)
        assert (serving.generation, sync.refusals) == (5, 1)


async def test_a_new_instance_that_refuses_its_first_table_reports_it_and_serves_nothing(tmp_path):
    async with syncing(tmp_path) as (sync, control, serving, upstream):
        control.data = contradictory(upstream.address)
        await sync.pull()
        assert "stable version '9' is not among its versions" in (await refusal(sync, control))[1]
        assert (serving.table, control.reports[-1].applied_generation) == (None, 0)


async def test_the_refusal_is_reported_until_a_table_is_applied(tmp_path):
    async with syncing(tmp_path) as (sync, control, _, upstream):
        control.data = contradictory(upstream.address)
        for _ in range(3):
            await sync.pull()
            assert (await refusal(sync, control))[1] is not None
        control.publish(7, upstream.address)
        await sync.pull()
        assert await refusal(sync, control) == (None, None)
