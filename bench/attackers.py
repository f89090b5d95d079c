"""Hostile requests for a data plane, and the process that sends them.

`python -m bench.attackers NAME PORT MODEL SENDERS SECONDS` sends one kind from SENDERS connections
in a closed loop, and prints the number of responses by status.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from functools import cache
from time import monotonic

import grpc
import grpc.aio

Answers = Counter[str]

CONNECT_PAUSE_S = 0.02
EMPTY_LISTS = 5_000_000
SERVICE = "/inference.GRPCInferenceService/ModelInfer"


def request(path: str, body: bytes, headers: str = "") -> bytes:
    """Return the bytes of one request."""
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\n{headers}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


@cache
def lists(count: int) -> bytes:
    """Return a document of `count` empty lists: three bytes and one object each."""
    return b'{"data":[' + b"[]," * (count - 1) + b"[]]}"


@cache
def packed_lists() -> bytes:
    """Return 15 MB of JSON in 14.6 kB of gzip."""
    return gzip.compress(lists(EMPTY_LISTS), 9)


def infer(model: str) -> str:
    return f"/v2/models/{model}/infer"


GZIP = "content-encoding: gzip\r\n"


def deep_json(model: str) -> bytes:
    return request(infer(model), packed_lists(), GZIP)


def deep_json_plain(model: str) -> bytes:
    return request("/predict", packed_lists(), GZIP)


def deep_json_outcomes(model: str) -> bytes:
    return request("/outcomes", gzip.compress(b"[" + lists(EMPTY_LISTS) + b"]", 9), GZIP)


def lists_as_they_are(model: str) -> bytes:
    return request(infer(model), lists(EMPTY_LISTS))


def lists_of_60_kb(model: str) -> bytes:
    return request(infer(model), lists(20_000))


def lists_of_4_kb(model: str) -> bytes:
    return request(infer(model), lists(1_300))


def plain_of_60_kb(model: str) -> bytes:
    return request("/predict", lists(20_000))


def zeros(model: str) -> bytes:
    """Return a gigabyte of zeros in a megabyte of gzip."""
    packer = zlib.compressobj(9, wbits=31)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(1_000)) + packer.flush()
    return request(infer(model), packed, GZIP)


def nested(model: str) -> bytes:
    return request("/predict", b"[" * 50_000)


def objects(model: str) -> bytes:
    body = b'{"model":"%b","data":[%b{}]}' % (model.encode(), b'{"":1},' * 1_000_000)
    return request("/predict", body)


def small_chunks(model: str) -> bytes:
    """Return half a megabyte in chunks of two bytes."""
    head = f"POST {infer(model)} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    return head.encode() + b"2\r\n[]\r\n" * 250_000 + b"0\r\n\r\n"


OVER_HTTP: dict[str, Callable[[str], bytes]] = {
    function.__name__: function
    for function in (
        deep_json, deep_json_plain, deep_json_outcomes, lists_as_they_are, lists_of_60_kb,
        lists_of_4_kb, plain_of_60_kb, zeros, nested, objects, small_chunks,
    )
}  # fmt: skip


def empty_inputs(model: str) -> bytes:
    """Return a gRPC message with four million empty inputs of two bytes each."""
    name = model.encode()
    return b"\x0a%c%b" % (len(name), name) + b"\x2a\x00" * 4_000_000


def typed_contents(model: str) -> bytes:
    """Return a gRPC message with four million numbers of one byte each."""
    name = model.encode()
    contents = _field(0x12, b"\x01" * 4_000_000)
    tensor = _field(0x0A, b"features") + _field(0x12, b"FP32") + _field(0x2A, contents)
    return _field(0x0A, name) + _field(0x2A, tensor)


def _field(tag: int, data: bytes) -> bytes:
    length, at = b"", len(data)
    while at > 0x7F:
        length += bytes([at & 0x7F | 0x80])
        at >>= 7
    return bytes([tag]) + length + bytes([at]) + data


OVER_GRPC: dict[str, tuple[Callable[[str], bytes], grpc.Compression | None]] = {
    "grpc_empty_inputs": (empty_inputs, None),
    "grpc_empty_inputs_packed": (empty_inputs, grpc.Compression.Gzip),
    "grpc_typed_contents": (typed_contents, None),
}
# The length of the longest message.
GRPC_BYTES = 8_000_000
NAMES = (*OVER_HTTP, *OVER_GRPC)


async def send(name: str, port: int, model: str, senders: int, seconds: float) -> Answers:
    """Send from `senders` connections for `seconds`; return the responses by status."""
    answers: Answers = Counter()
    if name in OVER_HTTP:
        data = OVER_HTTP[name](model)
        until = monotonic() + seconds
        work = [_send(port, data, until, answers) for _ in range(senders)]
    else:
        make, packing = OVER_GRPC[name]
        message = make(model)
        until = monotonic() + seconds
        work = [_call(port, message, packing, until, answers) for _ in range(senders)]
    await asyncio.gather(*work)
    return answers


async def _send(port: int, data: bytes, until: float, answers: Answers) -> None:
    while monotonic() < until:
        try:
            async with asyncio.timeout(max(0.1, until - monotonic()) + 5):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    while monotonic() < until:
                        answers[await _exchange(reader, writer, data)] += 1
                finally:
                    writer.close()
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            answers["closed"] += 1
            await asyncio.sleep(CONNECT_PAUSE_S)


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> str:
    writer.write(data)
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
    body = json.loads(await reader.readexactly(length))
    return f"{head.split()[1]} {body.get('code', '')}".strip()


async def _call(
    port: int,
    message: bytes,
    packing: grpc.Compression | None,
    until: float,
    answers: Answers,
) -> None:
    # By default all channels of a process share one connection.
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        method = channel.unary_unary(SERVICE)
        while monotonic() < until:
            try:
                await method(message, compression=packing, timeout=15)
                answers["OK"] += 1
            except grpc.aio.AioRpcError as error:
                answers[error.code().name] += 1


def main() -> None:
    """Send the requests, and print the responses by status as JSON."""
    name, port, model, senders, seconds = sys.argv[1:]
    answers = asyncio.run(send(name, int(port), model, int(senders), float(seconds)))
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
