"""Valid input, damaged at random, a million times: no crash, no hang, no effect on others.

Faster than the hypothesis strategies, and as reproducible: each run uses the same seed.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import time
import zlib
from collections.abc import Callable
from contextlib import suppress

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as messages

from contract.routing import UnitKey
from dataplane.codec import Codec
from dataplane.compression import inflate
from dataplane.errors import Refusal
from dataplane.grpc_codec import read_message
from dataplane.http_routes import Application
from dataplane.predict import Predictor
from dataplane.serving import Serving
from dataplane.telemetry import Telemetry
from tests.dataplane.wire import Wire, request
from tests.dataplane.worlds import HeldTriton, body, model, sums_reply, table
from tests.fuzz.fuzzers import SIGNATURE

TOGETHER = 24
INFER = "/v2/models/sums/infer"
ROW = [1.0, 2.0, 3.0, 4.0]
TWO = (
    b'{"id":"7","inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1.5,-2e3]},'
    b'{"name":"s","datatype":"BYTES","shape":[1,2],"data":["a","\\u00e9"]}],'
    b'"parameters":{"unit_id":"u","binary_data_output":true},"outputs":[{"name":"y"}]}'
)
BINARY = (
    b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],'
    b'"parameters":{"binary_data_size":16}}]}' + bytes(16)
)
LENGTH = f"inference-header-content-length: {len(BINARY) - 16}\r\n"
TOKENS = (
    b"\r\n", b"\r\n\r\n", b"0\r\n\r\n", b"chunked", b"content-length: 5\r\n", b"\x00", b"\xff",
    b"NaN", b"-Infinity", b"null", b"true", b"1e999", b"[[", b"}]", b'"', b"\\ud800", b"-1", b"666",
    b"9999999999999999999", b'"BYTES"', b'"binary_data_size":4', b"content-encoding: gzip\r\n",
)  # fmt: skip
HTTP_SEEDS = (
    request(INFER, body(ROW)),
    request(INFER, body(ROW, [5, 6, 7, 8], id="a", parameters={"unit_id": "u"})),
    request(INFER, BINARY, LENGTH),
    request(INFER, gzip.compress(body(ROW)), "content-encoding: gzip\r\n"),
    request("/predict", b'{"model":"sums","user_id":"u","data":[[1,2,3,4]]}'),
    request("/v2/models/sums", method="GET") + request(INFER, body(ROW)),
    b"POST /v2/models/sums/infer HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    b"%x\r\n%b\r\n0\r\n\r\n" % (len(body(ROW)), body(ROW)),
)


def damage(rng: random.Random, data: bytes) -> bytes:
    """Return `data` with one to three changes."""
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((0, 1, 1, 2, 8, 40)))
        new = rng.choice(
            (b"", data[at:end] * 2, rng.choice(TOKENS), rng.randbytes(rng.randint(1, 4)))
        )
        data = data[:at] + new + data[end:]
    return data


def beside_a_neighbour(rng: random.Random, count: int) -> None:
    """Damaged requests on some connections never affect the answers on another one."""
    asyncio.run(_beside_a_neighbour(rng, count))


async def _beside_a_neighbour(rng: random.Random, count: int) -> None:
    triton, telemetry = HeldTriton(sums_reply), Telemetry(time.time)
    serving = Serving(triton, telemetry, asyncio.get_running_loop(), 4)
    serving.apply(table(model(timeout_ms=60_000), 1))
    application = Application(Predictor(serving, telemetry), None, None, "boot", None, "", None)
    wires: list[Wire] = []
    for round_number in range(count // TOGETHER):
        if round_number % 50 == 0:
            wires = [Wire(answer=application) for _ in range(TOGETHER)]
            telemetry.drain(1)
        neighbour = Wire(answer=application)
        row = [float(rng.randint(-600, 600)) for _ in range(4)]
        for i in range(TOGETHER):
            if i == TOGETHER // 2:
                neighbour.feed(request(INFER, body(row)))
            if wires[i].ended or wires[i].statuses:
                wires[i] = Wire(answer=application)
            wires[i].feed(_damaged_request(rng))
        await _answered(neighbour)
        triton.calls.clear()
        triton.timeouts.clear()
        answer = neighbour.transport.written.partition(b"\r\n\r\n")[2]
        assert neighbour.statuses == [200], answer
        assert json.loads(answer)["outputs"][0]["data"] == [sum(row)]


def _damaged_request(rng: random.Random) -> bytes:
    seed = rng.choice(HTTP_SEEDS)
    if rng.random() < 0.5:
        return damage(rng, seed)
    # A valid head, so that the damage reaches the code that reads the body.
    headers = LENGTH if seed is HTTP_SEEDS[2] else ""
    return request(INFER, damage(rng, seed.partition(b"\r\n\r\n")[2]), headers)


async def _answered(wire: Wire) -> None:
    async with asyncio.timeout(5):
        while not wire.statuses:  # noqa: ASYNC110
            await asyncio.sleep(0)


def codec(rng: random.Random, count: int) -> None:
    """Any document is a valid request, or a 400."""
    reader = Codec(SIGNATURE, UnitKey(), batched=True, rows_max=4)
    for _ in range(count):
        data = damage(rng, TWO)
        length = rng.choice((None, None, rng.randint(0, len(data))))
        _fits(lambda data=data, length=length: reader.read_infer(data, length))  # type: ignore[misc]


def grpc_codec(rng: random.Random, count: int) -> None:
    """Any gRPC message is a valid request, or a refusal."""
    reader = Codec(SIGNATURE, UnitKey(), batched=True, rows_max=4)
    seed = messages.ModelInferRequest(model_name="m", id="7")
    x = seed.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    x.contents.fp32_contents.extend([1, 2])
    s = seed.inputs.add(name="s", datatype="BYTES", shape=[1, 1])
    s.contents.bytes_contents.append(b"a")
    seed.parameters["unit_id"].string_param = "u"
    seed.outputs.add(name="y")
    data = seed.SerializeToString()
    for _ in range(count):
        with suppress(DecodeError):
            message = messages.ModelInferRequest.FromString(damage(rng, data))
            _fits(lambda message=message: read_message(reader, message))  # type: ignore[misc]


def compression(rng: random.Random, count: int) -> None:
    """Any compressed body decompresses within the limit, or is refused."""
    plain = TWO * 3
    seeds = ((gzip.compress(plain), b"gzip"), (zlib.compress(plain), b"deflate"))
    for _ in range(count):
        packed, coding = rng.choice(seeds)
        with suppress(Refusal):
            assert len(inflate(damage(rng, packed), coding, 1_000)) <= 1_000


def _fits(read: Callable[[], object]) -> None:
    try:
        request = read()
    except Refusal as refusal:
        _check_refusal(refusal)
        return
    assert 1 <= request.rows <= 4  # type: ignore[attr-defined]
    assert len(request.tensors[0]) == request.rows * 8  # type: ignore[attr-defined]


def _check_refusal(refusal: Refusal) -> None:
    assert refusal.status == 400
    assert refusal.message


# The share of the inputs.
MUTATORS: dict[str, tuple[Callable[[random.Random, int], None], float]] = {
    "requests beside a neighbour": (beside_a_neighbour, 0.5),
    "codec": (codec, 0.35),
    "grpc codec": (grpc_codec, 0.1),
    "compression": (compression, 0.05),
}
