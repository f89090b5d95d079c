"""What a version must answer before a table that adds it is applied."""

import asyncio
import json
import time

import orjson
import pytest

from contract.routing import Cluster, RoutingTable, Signature, Tensor, VersionRoute
from dataplane import warmup as module
from dataplane.triton import Triton
from dataplane.warmup import Warmup
from tests.dataplane.transports import FAULTY, NOT_LOADED, STUB_DEAD, answer, transport, upstreams
from tests.dataplane.worlds import SUMS, Upstream, model, rows_of, table

ROW = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
TWO = {"name": "x", "datatype": "FP32", "shape": [2, 4], "data": [1, 2, 3, 4, 5, 6, 7, 8]}
REFUSED = answer(400, "unexpected category")


@pytest.fixture
async def triton():
    async with transport() as triton:
        yield triton


def version(warmup="", number="1"):
    return VersionRoute(
        cluster="main", triton_model=f"sums.{number}", triton_version=number, warmup=warmup
    )


def one(*endpoints, warmup="", **changes):
    """Return a table of one model with one version."""
    route = model(versions={"1": version(warmup)}, **changes)
    return table(route, 1, endpoints)


async def run(triton, table, applied=None, timeout_s=1.0):
    return await Warmup(triton, timeout_s).run(table, tuple(table.models), applied)


async def test_each_version_answers_one_row_of_zeros(triton):
    async with Upstream() as upstream:
        assert await run(triton, table(model(), 1, (upstream.address,))) == []
        assert sorted(request.split()[1] for request in upstream.requests) == [
            b"/v2/models/sums.1/versions/1/infer",
            b"/v2/models/sums.2/versions/2/infer",
        ]
        assert [rows_of(request)[1] for request in upstream.requests] == [[(0.0,) * 4]] * 2


async def test_explicit_requests_are_sent_unchanged(triton):
    async with Upstream() as upstream:
        warmup = json.dumps([[ROW], [TWO]])
        assert await run(triton, one(upstream.address, warmup=warmup)) == []
        rows = [rows_of(request)[1] for request in upstream.requests]
        assert rows == [[(1, 2, 3, 4)], [(1, 2, 3, 4), (5, 6, 7, 8)]]


async def test_zeros_fit_free_dimensions_and_every_datatype(triton):
    names = ["BOOL", "INT8", "UINT64", "FP16", "BF16", "FP64", "BYTES"]
    inputs = tuple(Tensor(name=name, datatype=name, shape=(-1, -1, 3)) for name in names)
    table = one("127.0.0.1:1", signature=Signature(inputs=inputs, outputs=SUMS.outputs))
    (newcomer,) = module._newcomers(table, ("sums",), None)
    head, _, payload = module._encode(newcomer, module._zeros(newcomer.model)).partition(
        b"\r\n\r\n"
    )
    length = int(head.partition(b"inference-header-content-length: ")[2].split(b"\r\n")[0])
    document = orjson.loads(payload[:length])
    sizes = [item["parameters"]["binary_data_size"] for item in document["inputs"]]
    assert {tuple(item["shape"]) for item in document["inputs"]} == {(1, 1, 3)}
    assert sizes == [3, 3, 24, 6, 6, 24, 12]
    assert payload[length:] == bytes(sum(sizes))


async def test_connections_are_open_afterwards():
    async with Upstream() as upstream, transport(warm_connections=3) as triton:
        assert await run(triton, one(upstream.address)) == []
        await asyncio.sleep(0.05)
        (endpoint,) = triton.endpoints()
        assert repr(endpoint).endswith("3 idle of 3 open>")


@pytest.mark.parametrize(
    "act", [STUB_DEAD, FAULTY, NOT_LOADED, "close", b"nonsense\r\n\r\n", "hang"]
)
async def test_a_version_that_does_not_answer_is_refused_by_name(triton, act):
    async with Upstream() as upstream:
        upstream.always = act
        reasons = await run(triton, one(upstream.address), timeout_s=0.1)
        assert len(reasons) == 1
        assert reasons[0].startswith(f"sums:1 on {upstream.address}: ")


async def test_each_endpoint_is_tested(triton):
    async with upstreams(2) as servers:
        servers[0].always = "answer"
        servers[1].always = STUB_DEAD
        (reason,) = await run(triton, one(*[server.address for server in servers]))
        assert reason.startswith(f"sums:1 on {servers[1].address}: ")
        assert len(servers[0].requests) == 1


async def test_a_version_that_refuses_zeros_is_alive(triton):
    async with Upstream() as upstream:
        upstream.script = [REFUSED]
        assert await run(triton, one(upstream.address)) == []


async def test_a_failure_on_zeros_says_how_to_fix_it(triton):
    async with Upstream() as upstream:
        upstream.always = FAULTY
        (reason,) = await run(triton, one(upstream.address))
        assert "set warm-up requests for the version" in reason


async def test_a_version_that_refuses_because_it_is_not_ready_is_not_alive(triton):
    async with Upstream() as upstream:
        upstream.script = [REFUSED]
        upstream.ready = False
        upstream.always = answer(400, "not ready")
        (reason,) = await run(triton, one(upstream.address))
        assert "not ready" in reason


async def test_a_version_that_refuses_its_own_warm_up_is_refused(triton):
    async with Upstream() as upstream:
        upstream.script = [REFUSED]
        (reason,) = await run(triton, one(upstream.address, warmup=json.dumps([[ROW]])))
        assert reason == f"sums:1 on {upstream.address}: unexpected category"


@pytest.mark.parametrize(
    ("warmup", "why"),
    [
        ("{", "not valid JSON"),
        ("{}", "must be a non-empty list"),
        ("[]", "must be a non-empty list"),
        (json.dumps([[ROW | {"name": "y"}]]), "do not fit the signature"),
        (json.dumps([[ROW | {"shape": [1, 3]}]]), "do not fit the signature"),
        (json.dumps([7]), "do not fit the signature"),
    ],
)
async def test_an_invalid_warm_up_is_refused_with_a_reason(triton, warmup, why):
    async with Upstream() as upstream:
        (reason,) = await run(triton, one(upstream.address, warmup=warmup))
        assert why in reason
        assert upstream.requests == []


async def test_an_answer_without_a_promised_output_is_a_refusal(triton):
    async with Upstream() as upstream:
        outputs = (*SUMS.outputs, Tensor(name="extra", datatype="FP32", shape=(-1, 1)))
        signature = Signature(inputs=SUMS.inputs, outputs=outputs)
        (reason,) = await run(triton, one(upstream.address, signature=signature))
        assert "the answer lacks 'extra'" in reason


async def test_served_versions_are_not_tested_again(triton):
    async with Upstream() as upstream:
        before = one(upstream.address)
        after = table(model(timeout_ms=77), 2, (upstream.address,))
        assert await run(triton, after, before) == []
        assert [request.split()[1] for request in upstream.requests] == [
            b"/v2/models/sums.2/versions/2/infer"
        ]


async def test_a_new_endpoint_of_a_known_version_is_tested(triton):
    async with upstreams(2) as servers:
        servers[1].always = "answer"
        before = one(servers[0].address)
        after = one(servers[0].address, servers[1].address)
        assert await run(triton, after, before) == []
        assert [len(server.requests) for server in servers] == [0, 1]


async def test_answers_count_for_the_next_try_of_a_refused_table(triton):
    async with upstreams(2) as servers:
        servers[0].always, servers[1].always = "answer", STUB_DEAD
        warmup, table = Warmup(triton, 1.0), one(*[server.address for server in servers])
        assert len(await warmup.run(table, ("sums",), None)) == 1
        servers[1].always = "answer"
        assert await warmup.run(table, ("sums",), None) == []
        assert [len(server.requests) for server in servers] == [1, 2]


async def test_pools_of_a_refused_tables_endpoints_are_closed(triton):
    async with upstreams(1) as servers:
        servers[0].always = STUB_DEAD
        assert len(await run(triton, one(servers[0].address))) == 1
        assert list(triton.endpoints()) == []


def many(count, address):
    route = model(versions={"1": version()})
    return RoutingTable(
        generation=1,
        models={f"m{i}": model(versions={"1": VersionRoute(
            cluster="main", triton_model=f"m{i}", triton_version="1")}) for i in range(count)},
        clusters={"main": Cluster(endpoints=(address,))},
    ) if count else table(route)  # fmt: skip


async def test_concurrency_is_bounded_and_a_few_reasons_end_it(triton):
    async with Upstream() as upstream:
        upstream.always = STUB_DEAD
        reasons = await run(triton, many(200, upstream.address))
        assert len(reasons) == module.REASONS_MAX
        assert len(upstream.requests) <= module.AT_ONCE + module.REASONS_MAX
        assert upstream.connections <= 16


async def test_a_turn_that_takes_too_long_continues_at_the_next_try(triton, monkeypatch):
    async with Upstream() as upstream:
        upstream.delay_s = 0.05
        warmup, table = Warmup(triton, 1.0), many(48, upstream.address)
        monkeypatch.setattr(module, "TURN_S", 0.12)
        (reason,) = await warmup.run(table, tuple(table.models), None)
        assert "takes longer than" in reason
        monkeypatch.setattr(module, "TURN_S", 5.0)
        assert await warmup.run(table, tuple(table.models), None) == []
        assert 48 <= len(upstream.requests) <= 48 + 2 * module.AT_ONCE


async def test_ten_thousand_known_models_cost_no_request_and_do_not_block():
    triton = Triton(asyncio.get_running_loop())
    table = many(10_000, "127.0.0.1:1")
    longest = 0.0

    async def watch():
        nonlocal longest
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0)
            longest = max(longest, time.perf_counter() - before)

    watcher = asyncio.create_task(watch())
    assert await Warmup(triton, 1.0).run(table, tuple(table.models), table) == []
    watcher.cancel()
    assert list(triton.endpoints()) == []
    assert longest < 0.1


async def test_a_poll_that_is_cancelled_leaves_nothing_running(triton):
    async with Upstream() as upstream:
        upstream.always = "hang"
        running = asyncio.create_task(run(triton, one(upstream.address), timeout_s=0.2))
        await asyncio.sleep(0.05)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await asyncio.sleep(0.25)
        (endpoint,) = triton.endpoints()
        assert endpoint.in_flight == 0
