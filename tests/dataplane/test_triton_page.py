"""The metrics of endpoints and circuits, and their trips in the report."""

import asyncio

import pytest

from contract.routing import Cluster, RoutingTable
from dataplane.metrics import Page
from dataplane.serving import Serving
from dataplane.telemetry import Telemetry
from dataplane.triton.metrics import add_circuits, add_endpoints
from tests.dataplane.transports import STUB_DEAD, ask_often, replicas_on, transport, upstreams
from tests.dataplane.worlds import model

pytestmark = pytest.mark.usefixtures("even")


def samples(page):
    lines = [line for line in page.text().decode().splitlines() if line and line[0] != "#"]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


async def test_endpoints_show_their_state_and_retries():
    async with upstreams(2) as servers, transport(eject_failures=2, retry_floor=1) as triton:
        servers[0].always = "close"
        await ask_often(triton, replicas_on(servers), 20)
        page = Page()
        add_endpoints(page, triton)
        values = samples(page)
        bad, good = (f'{{endpoint="{server.address}"}}' for server in servers)
        assert values[f"interlock_endpoint_ejected{bad}"] == 1
        assert values[f"interlock_endpoint_ejected{good}"] == 0
        assert values[f"interlock_endpoint_ejections_total{bad}"] == 1
        assert values[f"interlock_retries_total{good}"] >= 1
        assert values[f"interlock_retries_total{bad}"] == 0
        assert values[f"interlock_hedges_total{good}"] == 0
        assert f"interlock_retry_budget_exhausted_total{bad}" in values
        assert values[f"interlock_endpoint_connections{good}"] == 1


async def test_removed_endpoints_leave_the_page():
    async with upstreams(2) as servers, transport() as triton:
        await ask_often(triton, replicas_on(servers), 5)
        triton.keep_only({servers[1].address})
        page = Page()
        add_endpoints(page, triton)
        assert servers[0].address not in page.text().decode()
        assert servers[1].address in page.text().decode()


async def test_circuits_show_while_they_are_not_closed():
    async with upstreams(2) as servers, transport() as triton:
        replicas, labels = replicas_on(servers, open_ms=60_000), (("model_name", "m"),)
        page = Page()
        add_circuits(page, [(labels, replicas)])
        assert samples(page) == {}
        servers[0].always = STUB_DEAD
        await ask_often(triton, replicas, 20)
        page = Page()
        add_circuits(page, [(labels, replicas)])
        name = f'interlock_circuit_state{{model_name="m",endpoint="{servers[0].address}"}}'
        assert samples(page) == {name: 2}


async def test_a_table_gives_a_version_its_circuits_and_its_hedging():
    async with upstreams(2) as servers, transport() as triton:
        loop = asyncio.get_running_loop()
        serving = Serving(triton, Telemetry(lambda: 0.0), loop, 4)
        addresses = tuple(server.address for server in servers)
        cluster = Cluster(endpoints=addresses, hedge_after_ms=250)
        serving.apply(
            RoutingTable(generation=3, models={"sums": model()}, clusters={"main": cluster})
        )
        live = serving.model("sums")
        replicas = serving.lane(live, live.router.stable).runtime.replicas
        assert (replicas.addresses, replicas.hedge_after_s) == (addresses, 0.25)
        servers[0].always = STUB_DEAD
        await ask_often(triton, replicas, 20)
        (trip,) = serving.trips
        assert (trip.model, trip.version, trip.generation) == ("sums", "1", 3)
        assert trip.reason.startswith(f"replica on {servers[0].address}: Failed to process")
