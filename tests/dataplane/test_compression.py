import asyncio
import gzip
import json
import random
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.compression import (
    INLINE_BYTES_MAX,
    MEMBERS_MAX,
    PACKED_INLINE_BYTES_MAX,
    RATIO_FREE_BYTES,
    RATIO_MAX,
    accepted,
    deflate,
    inflate,
    unpack,
)
from dataplane.config import Limits
from dataplane.errors import Refusal
from tests.dataplane.wire import Wire, echo, request


def bare(data):
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


PACKERS = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZIP": lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:]),
    "deflate": zlib.compress,
    " deflate": bare,
    "identity": bytes,
}
BIG = b"0123456789abcdef" * (INLINE_BYTES_MAX // 8)


async def ask(body, encoding, limits=None, headers=""):
    """Return status and body of the answer to one compressed request; the application echoes it."""
    wire = Wire(limits, answer=echo)
    wire.feed(request(body=body, headers=f"content-encoding: {encoding}\r\n{headers}"))
    async with asyncio.timeout(5):
        while not wire.statuses:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    head, _, answer = wire.transport.written.partition(b"\r\n\r\n")
    return wire.statuses[0], head, answer


@pytest.mark.parametrize("encoding", PACKERS)
@pytest.mark.parametrize("data", [b"", b"hello, hello", BIG[:INLINE_BYTES_MAX]])
async def test_a_compressed_body_is_restored(encoding, data):
    status, _, answer = await ask(PACKERS[encoding](data), encoding)
    assert (status, bytes.fromhex(json.loads(answer)[2])) == (200, data)


@pytest.mark.parametrize(
    ("body", "encoding", "status", "code"),
    [
        (b"x", "br", 415, "unsupported_encoding"),
        (b"x", "gzip, gzip", 415, "unsupported_encoding"),
        (b"", "gzip", 400, "malformed_encoding"),
        (b"nonsense", "gzip", 400, "malformed_encoding"),
        (b"nonsense", "deflate", 400, "malformed_encoding"),
        (gzip.compress(b"hello", mtime=0)[:-1], "gzip", 400, "malformed_encoding"),
        (gzip.compress(b"hello", mtime=0) + b"x", "gzip", 400, "malformed_encoding"),
        (zlib.compress(b"hello") + b"x", "deflate", 400, "malformed_encoding"),
        (gzip.compress(b"", mtime=0) * (MEMBERS_MAX + 1), "gzip", 400, "malformed_encoding"),
        (gzip.compress(bytes(1_001), mtime=0), "gzip", 413, "body_too_large"),
    ],
)
async def test_a_body_that_cannot_be_decompressed_is_refused(body, encoding, status, code):
    got, _, answer = await ask(body, encoding, Limits(body_bytes_max=max(1_000, len(body))))
    assert (got, json.loads(answer)["code"]) == (status, code)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_large_body_stays_compressed_in_the_event_loop(encoding):
    packed = PACKERS[encoding](BIG)
    body, coding = unpack(packed, encoding.encode(), 10_000_000)
    assert (body, coding) == (packed, encoding.encode())
    assert inflate(packed, coding, len(BIG)) == BIG


def test_a_body_is_decompressed_in_pieces_up_to_its_limit():
    bomb = gzip.compress(bytes(50_000_000))
    pieces = []
    with pytest.raises(Refusal) as caught:
        inflate(bomb, b"gzip", 300_000, pieces.append)
    assert (caught.value.status, caught.value.code) == (413, "body_too_large")
    assert 200_000 < sum(map(len, pieces)) <= 300_000
    assert max(map(len, pieces)) <= 65_536


def test_the_compression_ratio_is_limited():
    free = gzip.compress(bytes(RATIO_FREE_BYTES))
    assert len(inflate(free, b"gzip", 1 << 30)) == RATIO_FREE_BYTES
    with pytest.raises(Refusal) as caught:
        inflate(gzip.compress(bytes(RATIO_FREE_BYTES + 1)), b"gzip", 1 << 30)
    assert (caught.value.status, caught.value.code) == (400, "compression_ratio")
    # Noise does not compress: only the first limit applies.
    noise = random.Random(1).randbytes(RATIO_FREE_BYTES // RATIO_MAX * 2)
    padded = noise + bytes(RATIO_FREE_BYTES)
    assert inflate(zlib.compress(padded), b"deflate", 1 << 30) == padded


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 1_000_000])
def test_members_of_any_size_are_joined(size):
    data = random.Random(size).randbytes(size)
    packed = gzip.compress(data) + gzip.compress(b"") + gzip.compress(data)
    assert inflate(packed, b"gzip", 1 << 30) == data * 2


def test_a_refusal_of_a_piece_ends_the_decompression():
    def check(piece):
        raise Refusal(400, "no", "no")

    with pytest.raises(Refusal, match="no"):
        inflate(gzip.compress(BIG), b"gzip", 1 << 30, check)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("size", [100, 5_000, PACKED_INLINE_BYTES_MAX * 2])
async def test_large_answers_are_compressed(coding, size):
    body = b"ab" * (size // 2)
    wire = Wire(answer=lambda exchange: exchange.respond(200, body))
    wire.feed(request(headers=f"accept-encoding: {coding}\r\n"))
    async with asyncio.timeout(5):
        while not wire.statuses:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    head, _, answer = wire.transport.written.partition(b"\r\n\r\n")
    packed = size >= Limits().compress_bytes_min
    assert (f"content-encoding: {coding}".encode() in head) is packed
    assert f"content-length: {len(answer)}".encode() in head
    assert (inflate(answer, coding.encode(), size) if packed else answer) == body


def test_an_answer_that_does_not_get_smaller_is_sent_uncompressed():
    noise = bytes((i * i * 31 + i // 7) % 251 ^ (i % 256) for i in range(64))
    wire = Wire(Limits(compress_bytes_min=1), answer=lambda e: e.respond(200, noise))
    wire.feed(request(headers="accept-encoding: gzip\r\n"))
    assert wire.transport.written.endswith(b"\r\n\r\n" + noise)


def test_a_second_answer_is_ignored_while_the_first_is_compressed():
    wire = Wire(Limits(compress_bytes_min=1))
    wire.feed(request(headers="accept-encoding: gzip\r\n"))
    wire.exchanges[0].respond(200, b"a" * 100)
    wire.exchanges[0].respond(500, b"b" * 100)
    assert wire.statuses == [200]


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        (b"", None),
        (b"gzip", b"gzip"),
        (b"deflate, gzip", b"gzip"),
        (b"gzip;q=0.5, deflate;q=0.8", b"deflate"),
        (b"GZIP ; Q=1", b"gzip"),
        (b"gzip;q=0", None),
        (b"*", b"gzip"),
        (b"*;q=0.1, gzip;q=0", b"deflate"),
        (b"br, identity", None),
        (b"gzip;q=x", None),
    ],
)
def test_the_coding_is_the_clients_preferred_one(header, coding):
    assert accepted(header) == coding


@given(data=st.binary(max_size=300), noise=st.binary(max_size=4), at=st.integers(0, 300))
def test_damaged_bodies_are_refused_or_complete(data, noise, at):
    for coding in (b"gzip", b"deflate"):
        packed = deflate(data, coding)
        damaged = packed[:at] + noise + packed[at + len(noise) :]
        with suppress(Refusal):
            assert len(inflate(damaged, coding, 1_000)) <= 1_000
