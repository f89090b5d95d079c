import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.routing import Signature, Tensor, UnitKey
from dataplane.codec import Codec
from dataplane.errors import Refusal
from tests.dataplane.worlds import SUMS, body

TWO = Signature(
    inputs=(
        Tensor(name="a", datatype="INT32", shape=(-1, -1)),
        Tensor(name="b", datatype="BYTES", shape=(-1, 1)),
    ),
    outputs=(Tensor(name="y", datatype="FP32", shape=(-1, 2)),),
)


def codec(signature=SUMS, batched=True, rows_max=8):
    return Codec(signature, UnitKey(), batched=batched, rows_max=rows_max)


def request(*inputs, **extras):
    return json.dumps({"inputs": list(inputs), **extras}).encode()


def x(**changes):
    return {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]} | changes


def refusal(data, reader=None, header_length=None):
    with pytest.raises(Refusal) as caught:
        (reader or codec()).read_infer(data, header_length)
    assert caught.value.status == 400
    return caught.value.code, caught.value.message


def test_rows_are_packed_in_the_order_of_the_signature():
    read = codec().read_infer(body([1, 2, 3, 4], [5, 6, 7, 8]))
    assert read.rows == 2
    assert struct.unpack("<8f", read.tensors[0]) == (1, 2, 3, 4, 5, 6, 7, 8)
    assert read.key is None


@given(st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False),
                         min_size=4, max_size=4), min_size=1, max_size=8))  # fmt: skip
def test_flat_and_nested_data_are_the_same_and_so_is_the_second_reading(rows):
    reader = codec()
    nested = request(x(shape=[len(rows), 4], data=rows))
    readings = [reader.read_infer(data) for data in (nested, body(*rows), body(*rows))]
    assert len({reading.tensors[0] for reading in readings}) == 1


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"name": "z"}, "unknown_input", "no input 'z'; it has 'x'"),
        ({"datatype": "FP64"}, "wrong_datatype", "'x': expected datatype FP32, got 'FP64'"),
        ({"shape": [1, 5]}, "wrong_shape", "'x': expected shape [-1, 4], got [1,5]"),
        ({"shape": [4]}, "wrong_shape", "'x': expected shape [-1, 4], got [4]"),
        ({"shape": "4"}, "wrong_shape", "'x': expected shape"),
        ({"shape": [1, [4]]}, "wrong_shape", "'x': expected shape"),
        ({"shape": [0, 4]}, "wrong_shape", "'x': expected shape"),
        ({"shape": [float("nan"), 4]}, "wrong_shape", "'x': expected shape"),
        ({"shape": [float("inf"), 4]}, "wrong_shape", "'x': expected shape"),
        ({"shape": [9, 4]}, "too_many_rows", "'x' has 9 rows; a request may have at most 8"),
        ({"data": [1, 2, 3]}, "wrong_data", "'x': expected 4 elements for shape [1, 4], got 3"),
        ({"data": [1, 2, 3, "4"]}, "wrong_data", "'x': element 3 is a string"),
        ({"data": [[1, 2, 3]]}, "wrong_shape", "'x': expected lists of 4 at depth 1"),
        ({"data": None}, "wrong_data", "'x' needs a list 'data'"),
        ({"parameters": {"region": "r"}}, "malformed_request", "'x': the only parameter is"),
        ({"parameters": {"shared_memory_region": "r"}}, "unsupported_parameter", "'x': 'shared"),
    ],
)
def test_an_input_that_does_not_fit_is_named(changes, code, message):
    reader = codec()
    reader.read_infer(body([1, 2, 3, 4]))  # The shape is cached from now on.
    got = refusal(request(x(**changes)), reader)
    assert got[0] == code
    assert message in got[1]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "malformed_json"),
        (b"{", "malformed_json"),
        (b"[]", "malformed_request"),
        (b"{}", "malformed_request"),
        (b'{"inputs":{}}', "malformed_request"),
        (b'{"inputs":[]}', "missing_input"),
        (b'{"inputs":[5]}', "malformed_request"),
        (request(x(), x()), "malformed_request"),
        (request(x(), id=7), "malformed_request"),
        (request(x(), parameters=[]), "malformed_request"),
        (request(x(), parameters={"a": []}), "malformed_request"),
        (request(x(), parameters={"unit_id": "u" * 300}), "wrong_unit"),
        (request(x(), outputs=[{"name": "nope"}]), "unknown_output"),
        (request(x(), outputs=["sum"]), "unknown_output"),
        (request(x(), outputs=[{"name": "sum", "parameters": {"top": 3}}]), "malformed_request"),
        (request(x(), outputs=[{"name": "sum", "parameters": {"classification": 3}}]),
         "unsupported_parameter"),
        (request(x(), parameters={"sequence_id": 3}), "unsupported_parameter"),
    ],
)  # fmt: skip
def test_malformed_requests_are_distinguished(data, code):
    assert refusal(data)[0] == code


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_read_as_in_triton(value):
    (tensor,) = codec().read_infer(body([1, 2, 3, value])).tensors
    assert tensor == struct.pack("<4f", 1, 2, 3, value)


@pytest.mark.parametrize(
    "text",
    [
        b'{"inputs":[NaN}',
        b'{"inputs":[],"id":"\\ud800","parameters":{"a":NaN}}',
        b"[" * 100_000 + b"NaN",
        b'{"inputs":[' + b"9" * 10_000 + b",NaN]}",
        b'{"inputs":[' + b"1," * 600_000 + b"NaN]}",
        b'{"inputs":[NaN],"id":"\xff"}',
    ],
)
def test_nan_in_a_document_that_is_invalid_anyway_is_refused(text):
    assert refusal(text)[0] == "malformed_json"


def test_nan_is_not_an_element_of_whole_numbers():
    a = {"name": "a", "datatype": "INT32", "shape": [1, 1], "data": [float("nan")]}
    assert refusal(request(a), codec(TWO))[0] == "wrong_data"


HALF = Signature(
    inputs=(Tensor(name="x", datatype="BF16", shape=(-1, 1)),),
    outputs=(
        Tensor(name="y", datatype="BF16", shape=(-1, 1)),
        Tensor(name="z", datatype="FP32", shape=(-1, 1)),
    ),
)


def half(**extras):
    parameters = {"binary_data_size": 2}
    tensor = {"name": "x", "datatype": "BF16", "shape": [1, 1], "parameters": parameters}
    head = request(tensor, **extras)
    return head + b"\x80\x3f", len(head)


def test_bfloat16_has_no_json_form_as_with_triton():
    tensor = {"name": "x", "datatype": "BF16", "shape": [1, 1], "data": [1.0]}
    code, message = refusal(request(tensor), codec(HALF))
    assert (code, "receiving BF16 data via JSON is not supported" in message) == (
        "wrong_datatype",
        True,
    )
    for extras in ({}, {"outputs": [{"name": "y"}]}):
        data, length = half(**extras)
        code, message = refusal(data, codec(HALF), length)
        assert "sending BF16 data via JSON is not supported" in message


@pytest.mark.parametrize(
    "extras",
    [
        {"parameters": {"binary_data_output": True}},
        {"outputs": [{"name": "y", "parameters": {"binary_data": True}}]},
        {"outputs": [{"name": "z"}]},
    ],
)
def test_bfloat16_is_received_and_sent_as_binary_data(extras):
    assert codec(HALF).read_infer(*half(**extras)).tensors == [b"\x80\x3f"]


def test_binary_data_of_no_input_is_refused():
    data, length = binary(16, b"\0" * 20)
    assert refusal(data, header_length=length)[0] == "wrong_data"


def test_true_is_not_a_number_even_for_a_known_shape():
    reader = codec()
    reader.read_infer(body([1, 2, 3, 4]))
    assert refusal(request(x(data=[1, 2, 3, True])), reader)[0] == "wrong_data"


def test_id_unit_outputs_and_parameters_are_read():
    read = codec().read_infer(
        request(
            x(),
            id="7",
            parameters={"unit_id": "u1", "mode": "fast", "binary_data_output": True},
            outputs=[{"name": "label"}, {"name": "sum", "parameters": {"binary_data": False}}],
        )
    )
    assert (read.id, read.unit) == ("7", "u1")
    assert read.outputs == ((1, True), (0, False))
    assert read.parameters == b'{"mode":"fast"}'
    assert read.key == (None, b'{"mode":"fast"}')


def test_a_whole_number_may_be_a_unit():
    assert codec().read_infer(request(x(), parameters={"unit_id": 42})).unit == "42"


def test_several_inputs_of_free_shapes_are_distinguished_by_shape():
    a = {"name": "a", "datatype": "INT32", "shape": [2, 3], "data": [[1, 2, 3], [4, 5, 6]]}
    b = {"name": "b", "datatype": "BYTES", "shape": [2, 1], "data": ["é", ""]}
    read = codec(TWO).read_infer(request(b, a))
    assert read.inner == ((3,), (1,))
    assert read.key == read.inner
    assert read.tensors == [struct.pack("<6i", *range(1, 7)), b"\x02\0\0\0\xc3\xa9\0\0\0\0"]


def test_inputs_must_have_the_same_rows():
    a = {"name": "a", "datatype": "INT32", "shape": [1, 1], "data": [1]}
    b = {"name": "b", "datatype": "BYTES", "shape": [2, 1], "data": ["x", "y"]}
    code, message = refusal(request(a, b), codec(TWO))
    assert code == "wrong_shape"
    assert "'b' has 2 rows, the inputs before it have 1" in message


def test_a_missing_input_is_named():
    a = {"name": "a", "datatype": "INT32", "shape": [1, 1], "data": [1]}
    assert refusal(request(a), codec(TWO)) == ("missing_input", "the request lacks input 'b'")


def binary(size, payload):
    head = request({"name": "x", "datatype": "FP32", "shape": [1, 4],
                    "parameters": {"binary_data_size": size}})  # fmt: skip
    return head + payload, len(head)


def test_binary_data_is_taken_as_it_is():
    payload = struct.pack("<4f", 1, 2, float("nan"), 4)
    data, length = binary(16, payload)
    assert codec().read_infer(data, length).tensors == [payload]


@pytest.mark.parametrize(("size", "payload"), [(12, b"\0" * 12), (16, b"\0" * 12), ("16", b"")])
def test_binary_data_of_the_wrong_size_is_refused(size, payload):
    data, length = binary(size, payload)
    code, message = refusal(data, header_length=length)
    assert code == "wrong_data"
    assert "'x': expected 16 bytes of binary data" in message


def test_a_model_without_a_batch_dimension_takes_its_own_shape():
    grid = Signature(
        inputs=(Tensor(name="x", datatype="FP32", shape=(2, 2)),), outputs=SUMS.outputs
    )
    reader = codec(grid, batched=False, rows_max=1)
    read = reader.read_infer(request(x(shape=[2, 2], data=[[1, 2], [3, 4]])))
    assert (read.rows, read.inner) == (1, ((2, 2),))
    assert refusal(request(x()), reader)[0] == "wrong_shape"


@pytest.mark.parametrize("data", [[[1, 2, 3, 4]], {"x": [[1, 2, 3, 4]]}])
def test_plain_rows_take_their_shape_from_the_signature(data):
    read = codec().read_rows(data)
    assert (read.rows, struct.unpack("<4f", read.tensors[0])) == (1, (1, 2, 3, 4))


@pytest.mark.parametrize("data", [5, [], [5], [[1, 2]], [[1, 2, 3, 4], [1]], {"z": []}, {}, [[]]])
def test_plain_rows_that_do_not_fit_are_refused(data):
    with pytest.raises(Refusal) as caught:
        codec().read_rows(data)
    assert caught.value.status == 400
