"""The service on a real socket, called by Triton's client and directly; Triton is a fake."""

import asyncio
import hashlib
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import msgspec
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc.aio import InferenceServerClient

from contract.routing import Cache as CacheSettings
from contract.routing import RoutingTable, Tenant
from dataplane.cache import Cache
from dataplane.config import Limits
from dataplane.emergency_pin import Operator
from dataplane.grpc_service import SERVICE, GrpcCaller, GrpcService
from dataplane.predict import Predictor
from dataplane.serving import Serving
from dataplane.telemetry import Telemetry
from dataplane.triton import Fault, Reply, TritonError
from dataplane.unit_clusters import cluster_of
from tests.dataplane.worlds import (
    HeldTriton,
    canary,
    knowing,
    model,
    stopped_clock,
    sums_reply,
    table,
    until,
)

ROW = np.array([[1, 2, 3, 4]], np.float32)
OPERATOR = {"authorization": "Bearer pager"}


class World:
    """A service, its port, and its parts."""

    def __init__(self, answer=sums_reply, limits=None, **changes):
        self.triton = HeldTriton(answer)
        self.telemetry = Telemetry(stopped_clock())
        self.serving = knowing(Serving(self.triton, self.telemetry, asyncio.get_running_loop(), 4))
        self.serving.apply(table(model(**changes), 3))
        predictor = Predictor(self.serving, self.telemetry)
        self.not_ready = None
        operator = Operator(self.serving, None, "pager")
        limits = limits or Limits()
        self.service = GrpcService(predictor, lambda: self.not_ready, operator, limits, 100)
        self.address = ""


@asynccontextmanager
async def a_world(*arguments, **changes):
    world = World(*arguments, **changes)
    world.address = f"127.0.0.1:{await world.service.start('127.0.0.1', 0)}"
    yield world
    await world.service.stop(0.5)


def message(**changes):
    tensor = messages.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 4])
    fields = {"model_name": "sums", "inputs": [tensor], "raw_input_contents": [ROW.tobytes()]}
    return messages.ModelInferRequest(**fields | changes)


async def call(world, data=None, metadata=(), method="ModelInfer", timeout_s=None, packing=None):
    """Return (code, answer or message, trailing metadata) of one call."""
    data = message().SerializeToString() if data is None else data
    async with grpc.aio.insecure_channel(world.address) as channel:
        under_way = channel.unary_unary(SERVICE + method)(
            data, metadata=metadata, timeout=timeout_s, compression=packing
        )
        try:
            answer = messages.ModelInferResponse.FromString(await under_way)
            return "OK", answer, dict(await under_way.trailing_metadata())
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details(), dict(error.trailing_metadata())


async def test_the_client_of_triton_gets_its_answer():
    async with a_world() as world, InferenceServerClient(world.address) as client:
        tensor = triton.InferInput("x", [2, 4], "FP32")
        tensor.set_data_from_numpy(np.arange(8, dtype=np.float32).reshape(2, 4))
        outputs = [triton.InferRequestedOutput("label"), triton.InferRequestedOutput("sum")]
        answer = await client.infer("sums", [tensor], outputs=outputs, request_id="7")
    assert answer.as_numpy("sum").tolist() == [[6], [22]]
    assert [output.name for output in answer.get_response().outputs] == ["label", "sum"]
    assert (answer.get_response().id, answer.get_response().model_version) == ("7", "1")


async def test_answers_and_failures_carry_their_provenance():
    boom = Reply(500, None, b'{"error":"boom"}')
    for reply, code in ((sums_reply, "OK"), (lambda _: boom, "INTERNAL")):
        async with a_world(reply) as world:
            got, _, trailing = await call(world)
        assert got == code
        assert trailing["x-interlock-version"] == "1"
        assert trailing["x-interlock-variant"] == "stable"
        assert trailing["x-interlock-generation"] == "3"
        assert "total;dur=" in trailing["server-timing"]
        assert ("x-interlock-request-id" in trailing) == (code == "OK")


@pytest.mark.parametrize(
    ("result", "code", "stable_code"),
    [
        (Reply(400, None, b'{"error":"no"}'), "INVALID_ARGUMENT", "refused_by_version"),
        (Reply(500, None, b'{"error":"boom"}'), "INTERNAL", "version_failed"),
        (TritonError(Fault.UNREACHABLE, "gone"), "UNAVAILABLE", "serving_unreachable"),
        (TritonError(Fault.TIMEOUT, "late"), "DEADLINE_EXCEEDED", "deadline_exceeded"),
    ],
)
async def test_a_failure_has_the_status_of_its_kind(result, code, stable_code):
    async with a_world(lambda _: result) as world:
        got, _, trailing = await call(world)
    assert (got, trailing["x-interlock-code"]) == (code, stable_code)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xff\xff", ("INVALID_ARGUMENT", "malformed_request")),
        (message(model_name="no").SerializeToString(), ("NOT_FOUND", "model_not_found")),
        (message(model_version="9").SerializeToString(), ("NOT_FOUND", "version_not_found")),
        (message(raw_input_contents=[b""]).SerializeToString(), ("INVALID_ARGUMENT", "wrong_data")),
        (message(inputs=[]).SerializeToString(), ("INVALID_ARGUMENT", "wrong_data")),
    ],
)
async def test_a_request_that_does_not_fit_is_refused(data, code):
    async with a_world() as world:
        got, _, trailing = await call(world, data)
    assert (got, trailing["x-interlock-code"]) == code


async def test_the_unit_comes_from_metadata_and_a_version_bypasses_the_split():
    async with a_world(split=canary(10_000)) as world:
        await call(world, metadata=[("x-unit-id", "u1")])
        await call(world, message(model_version="1").SerializeToString())
        windows, _ = world.telemetry.drain(3)
    assert {(w.variant, w.version, w.requests) for w in windows} == {
        ("canary", "2", 1),
        ("explicit", "1", 1),
    }


async def test_a_key_is_required_if_the_table_requires_one():
    digest = hashlib.sha256(b"secret").hexdigest()
    async with a_world() as world:
        served = table(model(), 4)
        tenants = {"t": Tenant(keys=(digest,))}
        world.serving.apply(
            RoutingTable(
                generation=4,
                models=served.models,
                clusters=served.clusters,
                tenants=tenants,
                key_required=True,
            )
        )
        codes = [
            (await call(world, metadata=metadata))[0]
            for metadata in ((), [("x-api-key", "secret")], [("authorization", "Bearer secret")])
        ]
    assert codes == ["UNAUTHENTICATED", "OK", "OK"]


async def test_a_call_that_cannot_be_handled_releases_its_slot(monkeypatch):
    digest = hashlib.sha256(b"secret").hexdigest()
    async with a_world() as world:
        tenants = {"t": Tenant(keys=(digest,), concurrency_max=1)}
        served = msgspec.structs.replace(table(model(), 4), tenants=tenants)
        world.serving.apply(served)
        with monkeypatch.context() as broken:
            broken.setattr(world.serving, "model", lambda name: 1 / 0)
            assert (await call(world, metadata=[("x-api-key", "secret")]))[0] == "INTERNAL"
        assert (await call(world, metadata=[("x-api-key", "secret")]))[0] == "OK"


def with_cache(world):
    world.serving.cache = Cache(asyncio.get_running_loop(), None, 100, 100_000)
    world.serving.apply(table(model(cache=CacheSettings(ttl_s=60)), 4))


async def test_cached_answers_are_equal_to_the_last_bit_and_have_their_own_id_and_outputs():
    label = messages.ModelInferRequest.InferRequestedOutputTensor(name="label")
    async with a_world() as world:
        _, expected, _ = await call(world)
        with_cache(world)
        got = [await call(world, message(id=i).SerializeToString()) for i in ("a", "b", "c")]
        only = [await call(world, message(outputs=[label]).SerializeToString()) for _ in range(2)]
    assert [trailing["x-interlock-cache"] for _, _, trailing in got] == ["miss", "l1", "l1"]
    assert [answer.id for _, answer, _ in got] == ["a", "b", "c"]
    for _, answer, _ in got:
        assert (answer.outputs, answer.raw_output_contents) == (
            expected.outputs,
            expected.raw_output_contents,
        )
    assert [trailing["x-interlock-cache"] for _, _, trailing in only] == ["miss", "l1"]
    assert [[output.name for output in answer.outputs] for _, answer, _ in only] == [["label"]] * 2


async def test_identical_calls_wait_for_the_first_even_if_it_hangs_up():
    async with a_world(None) as world:
        with_cache(world)
        first = asyncio.create_task(call(world))
        await until(lambda: world.triton.calls)
        others = [asyncio.create_task(call(world)) for _ in range(2)]
        await asyncio.sleep(0.05)
        first.cancel()
        await asyncio.sleep(0.05)
        world.triton.finish(0)
        got = [await other for other in others]
    assert [(code, trailing["x-interlock-cache"]) for code, _, trailing in got] == [
        ("OK", "l1")
    ] * 2
    assert len(world.triton.calls) == 1


async def test_the_deadline_of_the_call_is_passed_on_to_triton():
    async with a_world() as world:
        await call(world, timeout_s=0.5)
    assert world.triton.timeouts[0] < 0.51


async def test_a_client_that_hangs_up_affects_no_other():
    async with a_world(None) as world:
        hung = asyncio.create_task(call(world))
        await until(lambda: world.triton.calls)
        hung.cancel()
        await asyncio.sleep(0.05)
        world.triton.answer = sums_reply
        world.triton.finish(0)
        assert (await call(world))[0] == "OK"


async def test_a_message_over_the_limit_is_refused_compressed_or_not():
    async with a_world(limits=Limits(body_bytes_max=1_000)) as world:
        for packing in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            assert (await call(world, bytes(100_000), packing=packing))[0] == "RESOURCE_EXHAUSTED"


async def test_health_metadata_and_unsupported_methods():
    async with a_world() as world, InferenceServerClient(world.address) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        world.not_ready = "stopping"
        assert not await client.is_server_ready()
        assert (await client.get_model_metadata("sums")).inputs[0].name == "x"
        config = await client.get_model_config("sums", headers=OPERATOR)
        assert config.config.max_batch_size == 4
        assert await client.get_inference_statistics("sums", headers=OPERATOR)
        code, details, _ = await call(world, b"", method="RepositoryIndex")
    assert (code, "control plane" in details) == ("UNIMPLEMENTED", True)


async def test_a_stop_lets_a_call_finish():
    async with a_world(None) as world:
        call_task = asyncio.create_task(call(world))
        await until(lambda: world.triton.calls)
        stopping = asyncio.create_task(world.service.stop(2))
        await asyncio.sleep(0.05)
        world.triton.finish(0)
        assert (await call_task)[0] == "OK"
        await stopping


async def test_a_call_whose_deadline_passes_in_the_version_has_one_end():
    async with a_world(None, split=canary(10_000)) as world:
        code, _, _ = await call(world, timeout_s=0.1)
        assert code == "DEADLINE_EXCEEDED"
        await asyncio.sleep(0.05)
        world.triton.finish(0, TritonError(Fault.TIMEOUT, "no answer before the deadline"))
        (window,), _ = world.telemetry.drain(3)
    assert window.assigned_requests == window.ends.total == window.unanswered == 1
    assert window.ends.abandoned + window.ends.expired == 1


async def test_calls_that_a_stop_aborts_have_their_end():
    async with a_world(None, split=canary(10_000)) as world:
        asking = asyncio.create_task(call(world))
        await until(lambda: len(world.triton.calls) == 1)
        await world.service.stop(0)
        await asking
        (window,), _ = world.telemetry.drain(3)
    assert (window.assigned_requests, window.ends.abandoned) == (1, 1)


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.1:5000", b"10.0.0.1"),
        ("ipv6:%5B::1%5D:5000", b"::1"),
        ("ipv6:[::1]:5000", b"::1"),
        ("unix:", b""),
        ("", b""),
    ],
)
async def test_a_clients_cluster_is_that_of_its_address_as_over_http(peer, host):
    answer = asyncio.get_running_loop().create_future()
    assert GrpcCaller(answer, {}, peer).client_cluster == cluster_of(host)


async def test_calls_without_a_unit_are_counted_by_their_address():
    async with a_world(split=canary(10_000)) as world:
        await call(world)
        (window,), _ = world.telemetry.drain(3)
    assert set(window.clusters) == {cluster_of(b"127.0.0.1")}
