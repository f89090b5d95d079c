import struct

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.datatypes import DATATYPES, NotJson, check_strings, pack, rows_json, split_strings
from dataplane.errors import Refusal

NUMERIC = [d for d in DATATYPES.values() if d.size and d.name not in ("BOOL", "BF16")]


def values_of(datatype):
    if datatype.code in "efd":
        width = {"e": 16, "f": 32, "d": 64}[datatype.code]
        return st.floats(width=width, allow_nan=False, allow_infinity=False)
    info = np.iinfo(datatype.dtype)
    return st.integers(int(info.min), int(info.max))


def read_back(datatype, data, rows=1):
    return orjson.loads(b"[%b]" % b",".join(rows_json("y", datatype, data, rows)))


@pytest.mark.parametrize("datatype", NUMERIC, ids=lambda d: d.name)
@given(data=st.data())
def test_numbers_round_trip(datatype, data):
    values = data.draw(st.lists(values_of(datatype), min_size=1, max_size=8))
    packed = pack("x", datatype, values, booleans=False)
    assert packed == np.array(values, datatype.dtype).tobytes()
    back = np.array(read_back(datatype, packed), datatype.dtype)
    assert back.tobytes() == packed


@given(st.lists(st.text(max_size=9), min_size=1, max_size=6))
def test_strings_round_trip(values):
    packed = pack("x", DATATYPES["BYTES"], values, booleans=False)
    assert read_back(DATATYPES["BYTES"], packed) == values
    assert b"".join(split_strings(packed)) == packed


def test_booleans_round_trip():
    packed = pack("x", DATATYPES["BOOL"], [True, False], booleans=True)
    assert packed == b"\x01\x00"
    assert read_back(DATATYPES["BOOL"], packed) == [True, False]


@given(
    st.floats(
        width=32, allow_nan=False, allow_infinity=False, max_value=2.0**120, min_value=-(2.0**120)
    )
)
def test_bfloat16_is_rounded_to_nearest(value):
    packed = pack("x", DATATYPES["BF16"], [value], booleans=False)
    (back,) = read_back(DATATYPES["BF16"], packed)
    assert len(packed) == 2
    assert back == pytest.approx(value, rel=2**-8, abs=1e-38)


@pytest.mark.parametrize(
    ("name", "values", "problem"),
    [
        ("FP32", [1.0, "2"], "element 1 is a string, expected FP32"),
        ("FP32", [None], "element 0 is null"),
        ("FP32", [1.0, True], "element 1 is a boolean"),
        ("FP32", [1e39], "element 0 is 1e+39, out of range"),
        ("FP16", [70_000], "element 0 is 70000, out of range"),
        ("INT8", [1, 128], "element 1 is 128, out of range"),
        ("UINT8", [-1], "element 0 is -1, out of range"),
        ("INT64", [1.5], "element 0 is 1.5, not a whole number"),
        ("INT64", [2**63], "out of range"),
        ("INT32", [[1]], "element 0 is a list"),
        ("BOOL", [1], "element 0 is a number, expected BOOL"),
        ("BYTES", ["a", 1], "element 1 is a number, expected BYTES"),
        ("BYTES", [{}], "element 0 is an object"),
    ],
)
def test_a_wrong_element_is_named(name, values, problem):
    with pytest.raises(Refusal) as caught:
        pack("x", DATATYPES[name], values, booleans=True)
    assert caught.value.status == 400
    assert caught.value.message.startswith("input 'x': ")
    assert problem in caught.value.message


def test_non_finite_numbers_are_written_as_in_triton():
    data = struct.pack("<6f", 0.1, float("nan"), float("inf"), 1.0, float("-inf"), 2.5)
    rows = rows_json("y", DATATYPES["FP32"], data, 3)
    assert rows == [b"0.1,NaN", b"Infinity,1.0", b"-Infinity,2.5"]


def test_an_output_that_is_not_text_is_refused():
    with pytest.raises(NotJson, match="not UTF-8"):
        rows_json("y", DATATYPES["BYTES"], b"\x01\x00\x00\x00\xff", 1)


def test_rows_are_encoded_separately():
    data = struct.pack("<4q", 1, 2, 3, 4)
    assert rows_json("y", DATATYPES["INT64"], data, 2) == [b"1,2", b"3,4"]


def test_a_float_is_written_in_its_own_precision():
    assert rows_json("y", DATATYPES["FP32"], struct.pack("<f", 0.1), 1) == [b"0.1"]


@pytest.mark.parametrize("data", [b"", b"\x01\x00\x00\x00", b"\x00\x00\x00\x00" * 3, b"\xff" * 9])
def test_binary_strings_of_the_wrong_count_are_refused(data):
    with pytest.raises(Refusal, match="2 length-prefixed elements"):
        check_strings("x", data, 2)
