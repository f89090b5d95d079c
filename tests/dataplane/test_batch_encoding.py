"""The call to Triton: which parts are cached from batch to batch, and which are encoded again."""

import pytest

from contract.routing import Signature, Tensor
from dataplane.batch_encoding import Encoder
from tests.dataplane.worlds import SUMS, Waiter, model, rows_of

ROW = [1.0, 2.0, 3.0, 4.0]


def encoder(**changes):
    route = model(**changes)
    return Encoder(route, route.versions["1"])


def test_the_head_of_a_shape_is_cached_except_its_timeout():
    encode = encoder().encode
    first = encode([Waiter(ROW), Waiter(ROW)], 2, 1.0)
    again = encode([Waiter([5.0, 6.0, 7.0, 8.0]), Waiter(ROW)], 2, 0.25)
    for call, timeout_us in ((first, 1_000_000), (again, 250_000)):
        document, rows = rows_of(call)
        assert document["parameters"] == {"binary_data_output": True, "timeout": timeout_us}
        assert document["inputs"][0]["shape"] == [2, 4]
        assert len(rows) == 2
    assert rows_of(again)[1][0] == (5.0, 6.0, 7.0, 8.0)
    assert len(first) == len(again)


@pytest.mark.parametrize(
    ("timeout_s", "expected_us"),
    [(0.0, 1), (-1.0, 1), (1e-6, 1), (600.0, 600_000_000), (1e12, 10**12 - 1)],
)
def test_the_timeout_always_fits_and_is_never_0(timeout_s, expected_us):
    document, _ = rows_of(encoder().encode([Waiter(ROW)], 1, timeout_s))
    assert document["parameters"]["timeout"] == expected_us


@pytest.mark.parametrize(
    ("parameter", "expected_us"),
    [("99", 99), ("0", 1_000_000), ("99000000", 1_000_000), ('"x"', 1_000_000), ("-4", 1_000_000)],
)
def test_parameters_are_passed_on_with_the_shorter_timeout(parameter, expected_us):
    job = Waiter(ROW, key="k")
    job.request.parameters = b'{"mode":"fast","timeout":%b}' % parameter.encode()
    document, _ = rows_of(encoder().encode([job], 1, 1.0))
    expected = {"mode": "fast", "binary_data_output": True, "timeout": expected_us}
    assert document["parameters"] == expected


def test_several_inputs_are_concatenated():
    two = (*SUMS.inputs, Tensor(name="y", datatype="INT64", shape=(-1, 1)))
    encode = encoder(signature=Signature(inputs=two, outputs=SUMS.outputs)).encode
    jobs = [Waiter(ROW), Waiter(ROW)]
    for i, job in enumerate(jobs):
        job.request.tensors = [b"x" * 16, bytes([i]) * 8]
        job.request.inner = ((4,), (1,))
    call = encode(jobs, 2, 1.0)
    assert call.endswith(b"}}" + b"x" * 32 + b"\0" * 8 + b"\1" * 8)


def test_heads_of_strings_are_not_cached():
    text = (Tensor(name="x", datatype="BYTES", shape=(-1, 1)),)
    encode = encoder(signature=Signature(inputs=text, outputs=SUMS.outputs)).encode
    for data in (b"\2\0\0\0ab", b"\5\0\0\0abcde"):
        job = Waiter(ROW)
        job.request.tensors, job.request.inner = [data], ((1,),)
        call = encode([job], 1, 1.0)
        assert b'"binary_data_size":%d' % len(data) in call
        assert call.endswith(data)


def test_the_cache_of_heads_is_limited():
    cached = encoder()
    for i in range(1_000):
        cached.encode([Waiter(ROW, key=i)], 1, 1.0)
    assert len(cached._heads) <= 256
