"""One end each, whatever clients, operators and models do: pipelines, gRPC, stops, pins, quotas."""

import asyncio
import gzip
import hashlib
import json
import time
from types import SimpleNamespace

import msgspec
import pytest
from tritonclient.grpc import service_pb2 as messages

from contract.messages import Ends
from contract.request_ids import parse_request_id
from contract.routing import Tenant
from dataplane.grpc_service import GrpcService
from dataplane.predict import Predictor
from dataplane.triton import Fault, TritonError
from tests.dataplane import test_grpc_service as over_grpc
from tests.dataplane.test_ends import HEADERS, Script, check
from tests.dataplane.test_predict import BOOM, INFER, REFUSED, ROW, Plane, by_version
from tests.dataplane.wire import Wire, request
from tests.dataplane.worlds import body, canary, model, sums_reply, table, until

KEY = "x-api-key: k\r\n"
TENANTS = {
    "t": Tenant(keys=(hashlib.sha256(b"k").hexdigest(),), requests_per_s=300, concurrency_max=4)
}
# Their sum overflows the model's floats, and has no JSON form.
INFINITE = [3e38] * 4


class Context:
    """The context of a call over gRPC."""

    def __init__(self, metadata, remaining_s):
        self.metadata, self.remaining_s = metadata, remaining_s

    def invocation_metadata(self):
        return self.metadata

    def time_remaining(self):
        return self.remaining_s

    def peer(self):
        return "ipv4:127.0.0.1:50000"

    def set_trailing_metadata(self, lines):
        pass

    async def abort(self, *_):
        pass


class Hostile(Script):
    """Clients of every kind that leave at any time, and an operator that uses everything."""

    def __init__(self, seed, cached):
        self.calls = []
        self.admitted = 0
        super().__init__(seed, cached)
        serving = self.plane.serving
        predictor = Predictor(serving, self.plane.telemetry)
        # The parts of the service that a call needs, without a server.
        self.grpc = SimpleNamespace(_predictor=predictor, _serving=serving)
        admit = serving.admission.admit

        def counted(caller, size=0):
            tenancy = admit(caller, size)
            self.admitted += 1
            return tenancy

        serving.admission.admit = counted

    def apply(self):
        super().apply()
        serving = self.plane.serving
        serving.pin(frozenset(["sums"] if self.random.random() < 0.2 else []))
        if self.random.random() < 0.5:
            serving.apply(msgspec.structs.replace(serving.table, tenants=TENANTS))

    def arrive(self):
        self.random.choice([self.post, self.post, self.pipeline, self.ask_plainly, self.call])()

    def post(self, wire=None):
        wire = wire or Wire(answer=self.plane.application)
        wire.feed(self.bytes_of())
        self.wires.append(wire)

    def bytes_of(self):
        random = self.random
        row = random.choice([[float(random.randrange(4)), 2, 3, 4]] * 5 + [INFINITE])
        payload = body(*[row] * random.randint(1, 2))
        headers = self.unit() + random.choice(HEADERS) + random.choice(["", "", KEY])
        if random.random() < 0.2:
            payload = gzip.compress(payload)
            headers += "content-encoding: gzip\r\naccept-encoding: gzip\r\n"
        target = random.choice([INFER] * 8 + ["/v2/models/sums/versions/2/infer"])
        return request(target, payload, headers)

    def unit(self):
        return self.random.choice(["", *[f"x-unit-id: u{n}\r\n" for n in range(8)]])

    def pipeline(self):
        """Send several requests in one piece, or after those in progress."""
        wires = [each for each in self.wires[-6:] if not each.transport.closed]
        wire = self.random.choice([*wires, Wire(answer=self.plane.application)])
        if wire.connection.transport is not None:
            wire.feed(b"".join(self.bytes_of() for _ in range(self.random.randint(1, 40))))
            self.wires.append(wire)

    def ask_plainly(self):
        wire = Wire(answer=self.plane.application)
        row = self.random.choice([ROW, ROW, INFINITE])
        payload = json.dumps({"model": "sums", "data": [row]}).encode()
        wire.feed(request("/predict", payload, self.unit() + self.random.choice(HEADERS)))
        self.wires.append(wire)

    def call(self):
        tensor = messages.ModelInferRequest.InferInputTensor(
            name="x", datatype="FP32", shape=[1, 4]
        )
        tensor.contents.fp32_contents.extend(ROW)
        data = messages.ModelInferRequest(model_name="sums", inputs=[tensor]).SerializeToString()
        metadata = self.random.choice([(), (("x-unit-id", "u3"),), (("x-api-key", "k"),)])
        context = Context(metadata, self.random.choice([None, 0.02, 0.055]))
        self.calls.append(asyncio.ensure_future(GrpcService.infer(self.grpc, data, context)))

    def hang_up(self):
        random = self.random
        if self.calls and random.random() < 0.3:
            random.choice(self.calls[-6:]).cancel()
        elif self.wires and random.random() < 0.2:
            # A stop: each connection closes after its next answer.
            random.choice(self.wires[-12:]).server.stop()
        else:
            super().hang_up()
        for wire in self.wires[-40:]:
            if wire.transport.closed and wire.connection.transport is not None:
                wire.connection.connection_lost(None)

    async def settle(self):
        """End gracefully, or stop with requests in progress: then the last window is drained."""
        if self.random.random() < 0.5:
            await super().settle()
        for wire in self.wires:
            wire.server.stop()
        for _ in range(2):
            self.finish()
        for wire in self.wires:
            if wire.connection.transport is not None:
                wire.connection.connection_lost(None)
        for call in self.calls:
            call.cancel()
        await asyncio.gather(*self.calls, return_exceptions=True)


async def settled(script):
    """Let the versions answer requests whose clients have left."""
    for _ in range(20):
        while script.finished < len(script.plane.triton.calls):
            script.finish()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("seed", range(8))
async def test_each_admitted_request_ends_once_and_leaves_nothing_behind(seed, cached):
    script = Hostile(seed, cached)
    await script.run()
    ended = [window.ends.total for window in script.windows]
    assigned = [window.assigned_requests for window in script.windows]
    by_key = {}
    for window, n, ends_n in zip(script.windows, assigned, ended, strict=True):
        check(window)
        key = (window.version, window.variant, window.generation, window.split)
        by_key[key] = by_key.get(key, 0) + n - ends_n
    assert {key: left for key, left in by_key.items() if left} == {}
    assert sum(assigned) == script.admitted > 150
    await settled(script)
    serving = script.plane.serving
    for runtime in [*serving._versions.values(), *serving._baselines.values()]:
        assert (runtime.batcher.in_flight, runtime.batcher.waiting_rows) == (0, 0)
    assert all(each.in_flight == 0 for each in serving.admission._tenancies.values())
    assert serving.cache is None or len(serving.cache.flights) == 0


async def test_a_stop_that_closes_before_pipelined_requests_ends_them():
    plane = Plane(None, split=canary(10_000))
    wire = Wire(answer=plane.application)
    wire.feed(request(INFER, body(ROW)) * 3)
    await asyncio.sleep(0.01)
    wire.server.stop()
    plane.triton.finish(0)
    assert wire.statuses == [200]
    assert wire.transport.closed
    wire.connection.connection_lost(None)
    assert plane.windows()["canary"].ends == Ends(answered=1, abandoned=2)


async def test_a_client_that_left_during_decompression_calls_no_version():
    plane = Plane(None)
    wire = Wire(answer=plane.application)
    # Larger than the event loop decompresses itself.
    payload = body(ROW) + b" " * 200_000
    wire.feed(request(INFER, gzip.compress(payload), "content-encoding: gzip\r\n"))
    wire.connection.connection_lost(None)
    for _ in range(50):
        await asyncio.sleep(0.005)
    assert plane.triton.calls == []
    assert plane.windows() == {}


@pytest.mark.parametrize(
    ("stable", "end"),
    [(REFUSED, "refused"), (BOOM, "failed"), (TritonError(Fault.DEAD, "x"), "failed")],
)
async def test_a_request_that_the_canary_refuses_and_stable_fails_stays_unanswered(stable, end):
    plane = Plane(by_version(v2=REFUSED, v1=stable), split=canary(10_000))
    await plane.ask(headers="x-unit-id: u1\r\n")
    window = plane.windows()["canary"]
    assert window.ends == Ends(**{end: 1})
    assert window.unanswered == (end == "failed")


async def test_an_exposure_that_cannot_be_reported_ends_its_request():
    plane = Plane(split=canary(10_000, exposures=True))
    plane.telemetry.expose = None
    answer = await plane.ask(headers="x-unit-id: u1\r\n")
    assert answer.status == 500
    assert plane.windows()["canary"].ends == Ends(failed=1)


async def test_the_trial_of_a_half_open_breaker_is_released_however_it_ends():
    for end in ("hang-up", "expire", "refuse"):
        plane = Plane(None, timeout_ms=100)
        await plane_with_open_breaker(plane)
        wire = Wire(answer=plane.application)
        wire.feed(request(INFER, body(ROW), "x-interlock-timeout-ms: 5\r\n"))
        await asyncio.sleep(0)
        if end == "hang-up":
            wire.connection.connection_lost(None)
        await asyncio.sleep(0.02)
        call = len(plane.triton.calls) - 1
        late = TritonError(Fault.TIMEOUT, "no answer before the deadline")
        plane.triton.finish(call, REFUSED if end == "refuse" else late)
        breaker = next(iter(plane.serving._versions.values())).breaker
        assert breaker.admits(time.monotonic() + 1.0), end


async def plane_with_open_breaker(plane):
    """Fail until the breaker opens, and wait until it is half-open."""
    for number in range(3):
        wire = Wire(answer=plane.application)
        wire.feed(request(INFER, body(ROW)))
        await asyncio.sleep(0.001)
        if number < len(plane.triton.calls):
            plane.triton.finish(number, TritonError(Fault.DEAD, "gone"))
    await asyncio.sleep(0.06)


async def test_an_answer_with_nan_falls_back_and_its_id_names_stable():
    plane = Plane(sums_reply, split=canary(10_000, exposures=True))
    plane.serving.apply(table(model(split=canary(10_000, exposures=True)), 2))
    infinite = json.dumps({"model": "sums", "data": [INFINITE]}).encode()
    answer = await plane.ask("/predict", infinite, "x-unit-id: u1\r\n")
    assert answer.status == 500
    assert plane.windows()["canary"].ends == Ends(failed=1)
    plane = Plane(by_version(v2=BOOM), split=canary(10_000, exposures=True))
    plain = json.dumps({"model": "sums", "data": [ROW]}).encode()
    answer = await plane.ask("/predict", plain, "x-unit-id: u1\r\n")
    assert parse_request_id(answer.json["request_id"]).version == "1"


@pytest.mark.parametrize("way", ["deadline", "cancel", "stop"])
async def test_a_grpc_call_ended_by_its_client_or_a_stop_has_one_end(way):
    async with over_grpc.a_world(None, split=canary(10_000)) as world:
        given_s = 0.05 if way == "deadline" else 5.0
        call = asyncio.ensure_future(over_grpc.call(world, timeout_s=given_s))
        await until(lambda: world.triton.calls)
        if way == "cancel":
            call.cancel()
        if way == "stop":
            await world.service.stop(0.0)
        await asyncio.gather(call, return_exceptions=True)
        windows = []

        def has_ended():
            windows.extend(world.telemetry.drain(3)[0])
            return sum(window.ends.total for window in windows) == 1

        await until(has_ended, 1.0)
        # A later answer of the version is not counted.
        world.triton.finish(0)
        assert has_ended()
        assert sum(window.assigned_requests for window in windows) == 1
        left = [window.ends for window in windows if window.ends.total]
        assert left == [Ends(abandoned=1)] or (way == "deadline" and left == [Ends(expired=1)])
