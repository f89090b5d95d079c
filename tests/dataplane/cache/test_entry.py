"""Answers as values in Redis: stored values come back, and corrupt ones are refused."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_digest

from contract.routing import Signature, Tensor
from dataplane.batch_reply import Layout, Output
from dataplane.cache.entry import Corrupt, Scope, decode_value, encode_value, entry_of
from dataplane.datatypes import DATATYPES, NotJson

SCOPE = Scope(b"", None)


def tensor(datatype="FP32", shape=(-1, 2)):
    return Tensor(name="y", datatype=datatype, shape=shape)


def batch(datatype="FP32", rows=3):
    """Return the output of a batch, with two elements per row."""
    if datatype == "BYTES":
        data = b"".join(
            len(t).to_bytes(4, "little") + t for t in (b"%d" % i for i in range(2 * rows))
        )
    else:
        data = np.arange(2 * rows).astype(DATATYPES[datatype].dtype).tobytes()
        data = data[: 2 * rows * DATATYPES[datatype].size]
    return Output(Layout(tensor(datatype), [rows, 2], batched=True), memoryview(data))


def decode(value, datatype="FP32", rows=1, now=50.0, now_ms=1_000_000):
    signature = Signature(inputs=(), outputs=(tensor(datatype),))
    return decode_value(value, SCOPE, rows, signature, batched=True, now=now, now_ms=now_ms)


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_a_stored_value_comes_back(datatype):
    entry = entry_of(SCOPE, 2, [batch(datatype)], 1, 40.0)
    back = decode(encode_value(entry, 45.0, 995_000), datatype, rows=2)
    assert (back.rows, back.inners, back.raws, back.tail) == (2, ((2,),), entry.raws, entry.tail)
    signature = Signature(inputs=(), outputs=(tensor(datatype),))
    (output,) = back.outputs(signature, batched=True)
    assert output.raw(0, 2) == batch(datatype).raw(1, 3)
    assert output.json(0, 2) == batch(datatype).json(1, 3)


def test_a_value_keeps_its_age():
    entry = entry_of(SCOPE, 1, [batch()], 0, 40.0)
    value = encode_value(entry, now=42.0, now_ms=1_000_000)
    assert decode(value, now=50.0, now_ms=1_003_000).stored_at == pytest.approx(45.0)


def test_a_value_from_a_clock_ahead_of_ours_is_as_young_as_now():
    value = encode_value(entry_of(SCOPE, 1, [batch()], 0, 40.0), 40.0, 2_000_000)
    assert decode(value, now=50.0, now_ms=1_000_000).stored_at == 50.0


VALUE = encode_value(entry_of(SCOPE, 1, [batch()], 0, 40.0), 40.0, 1_000_000)


@given(st.binary(max_size=60))
def test_noise_is_corrupt(noise):
    with pytest.raises(Corrupt):
        decode(noise)


@given(st.integers(0, len(VALUE) - 1), st.integers(1, 255))
def test_a_value_with_one_wrong_byte_is_corrupt(at, change):
    broken = bytearray(VALUE)
    broken[at] ^= change
    with pytest.raises(Corrupt):
        decode(bytes(broken))


@pytest.mark.parametrize(
    "document",
    [
        (99, 0, 1, ((2,),), (b"x" * 8,)),
        (1, 0, 0, ((2,),), (b"",)),
        (1, 0, 2, ((2,),), (b"x" * 16,)),
        (1, 0, 2**40, ((0,),), (b"",)),
        (1, 0, 1, ((3,),), (b"x" * 8,)),
        (1, 0, 1, ((2,),), (b"x" * 7,)),
        (1, 0, 1, ((2,), (2,)), (b"x" * 8, b"x" * 8)),
        (1, 0, 1, (), ()),
        (1, 0, 1, ((2,),), ()),
        ("1", 0, 1),
        {},
    ],
)
def test_a_value_that_does_not_fit_the_signature_is_corrupt(document):
    data = msgspec.msgpack.encode(document)
    with pytest.raises(Corrupt):
        decode(xxh3_64_digest(data) + data)


def test_truncated_strings_are_corrupt():
    data = msgspec.msgpack.encode((1, 0, 1, ((2,),), (b"\x01\0\0\0a\x05\0\0\0b",)))
    with pytest.raises(Corrupt):
        decode(xxh3_64_digest(data) + data, "BYTES")


def test_an_answer_without_a_json_form_is_no_entry():
    raw = b"\x01\0\0\0\xff" * 2
    output = Output(Layout(tensor("BYTES"), [1, 2], batched=True), memoryview(raw))
    with pytest.raises(NotJson):
        entry_of(SCOPE, 1, [output], 0, 0.0)


def test_an_entry_does_not_keep_its_batch_alive():
    entry = entry_of(SCOPE, 1, [batch(rows=1_000)], 500, 0.0)
    assert [len(raw) for raw in entry.raws] == [8]
    assert entry.size < 700
