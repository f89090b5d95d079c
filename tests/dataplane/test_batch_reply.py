import json
import struct

import pytest

from contract.routing import Signature, Tensor
from dataplane.batch_reply import NotJson, ReplyReader, write_answer
from dataplane.codec import InferRequest
from dataplane.predict_response import write_plain
from dataplane.router import Decision
from dataplane.triton import Fault, Reply, TritonError
from tests.dataplane.worlds import SUMS

SHAPES = Signature(
    inputs=SUMS.inputs,
    outputs=(
        Tensor(name="grid", datatype="INT16", shape=(-1, 2, 2)),
        Tensor(name="words", datatype="BYTES", shape=(-1, -1)),
    ),
)
STABLE = Decision("4", "stable", "", 1)


def reply(*outputs):
    """Return a reply with these (name, datatype, shape, bytes)."""
    header = json.dumps(
        {
            "outputs": [
                {"name": name, "datatype": datatype, "shape": shape,
                 "parameters": {"binary_data_size": len(data)}}
                for name, datatype, shape, data in outputs
            ]
        }
    ).encode()  # fmt: skip
    return Reply(200, len(header), header + b"".join(data for *_, data in outputs))


def strings(*texts):
    return b"".join(struct.pack("<I", len(t)) + t for t in map(str.encode, texts))


def sums(*values):
    n = len(values)
    return reply(
        ("sum", "FP32", [n, 1], struct.pack(f"<{n}f", *values)),
        ("label", "INT64", [n, 1], struct.pack(f"<{n}q", *range(n))),
    )


def shapes():
    grid = ("grid", "INT16", [2, 2, 2], struct.pack("<8h", *range(8)))
    words = ("words", "BYTES", [2, 2], strings("a", "bb", "", "ü"))
    return ReplyReader(SHAPES, batched=True).read(reply(grid, words), 2)


def wish(rows=1, **changes):
    request = InferRequest(rows, [b""], None, ((4,),))
    for name, value in changes.items():
        setattr(request, name, value)
    return request


def test_each_request_gets_the_json_of_its_rows():
    outputs = ReplyReader(SUMS, batched=True).read(sums(0.5, 1.5, 2.5), 3)
    body, _ = write_answer(b'{"model_name":"m",', wish(2, id="7"), outputs, 1)
    assert json.loads(body) == {
        "model_name": "m",
        "id": "7",
        "outputs": [
            {"name": "sum", "datatype": "FP32", "shape": [2, 1], "data": [1.5, 2.5]},
            {"name": "label", "datatype": "INT64", "shape": [2, 1], "data": [1, 2]},
        ],
    }


def test_only_requested_outputs_are_returned_in_the_requested_order():
    outputs = ReplyReader(SUMS, batched=True).read(sums(0.5), 1)
    body, length = write_answer(b"{", wish(outputs=((1, False),)), outputs, 0)
    assert [output["name"] for output in json.loads(body)["outputs"]] == ["label"]
    assert length is None


def test_binary_and_json_outputs_may_be_mixed():
    outputs = ReplyReader(SUMS, batched=True).read(sums(0.5, 1.5), 2)
    body, length = write_answer(b"{", wish(outputs=((0, True), (1, False))), outputs, 1)
    first, second = json.loads(body[:length])["outputs"]
    assert first["parameters"] == {"binary_data_size": 4}
    assert body[length:] == struct.pack("<f", 1.5)
    assert second["data"] == [1]


def test_strings_are_cut_by_rows_in_both_forms():
    outputs = shapes()
    body, length = write_answer(b"{", wish(binary=True), outputs, 1)
    assert body[length:] == struct.pack("<4h", 4, 5, 6, 7) + strings("", "ü")
    plain, _ = write_answer(b"{", wish(), outputs, 1)
    assert json.loads(plain)["outputs"][1]["data"] == ["", "ü"]


def test_nan_is_sent_as_binary_data():
    outputs = ReplyReader(SUMS, batched=True).read(sums(float("nan")), 1)
    body, length = write_answer(b"{", wish(binary=True), outputs, 0)
    assert body[length : length + 4] == struct.pack("<f", float("nan"))


def test_nan_is_not_allowed_in_plain_json():
    outputs = ReplyReader(SUMS, batched=True).read(sums(float("nan")), 1)
    with pytest.raises(NotJson, match="'sum' holds NaN or infinity"):
        write_plain("m", STABLE, wish(), outputs, 0)


@pytest.mark.parametrize(
    ("status", "body", "fault"),
    [
        (400, b'{"error":"bad shape"}', Fault.REFUSED),
        (404, b'{"error":"unknown model"}', Fault.DEAD),
        (500, b'{"error":"Stub process \'m_0\' is not healthy."}', Fault.DEAD),
        (500, b'{"error":"boom"}', Fault.FAILED),
        (503, b"", Fault.DEAD),
        (502, b"<html>", Fault.FAILED),
    ],
)
def test_tritons_message_decides_the_kind_of_failure(status, body, fault):
    with pytest.raises(TritonError) as caught:
        ReplyReader(SUMS, batched=True).read(Reply(status, None, body), 1)
    assert caught.value.fault is fault


@pytest.mark.parametrize(
    "wrong",
    [
        reply(("sum", "FP32", [1, 1], b"\0" * 4)),
        reply(("sum", "FP32", [2, 1], b"\0" * 8), ("label", "INT64", [2, 1], b"\0" * 16)),
        reply(("sum", "FP32", [1, 1], b"\0" * 3), ("label", "INT64", [1, 1], b"\0" * 8)),
        Reply(200, 5, b'{"out'),
    ],
)
def test_a_reply_that_does_not_fit_is_a_failure_of_the_version(wrong):
    with pytest.raises(TritonError) as caught:
        ReplyReader(SUMS, batched=True).read(wrong, 1)
    assert caught.value.fault is Fault.FAILED


def test_a_plain_answer_nests_its_rows():
    answer = json.loads(write_plain("m", STABLE, wish(2, id="r"), shapes(), 0))
    assert answer["outputs"]["grid"] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert answer["outputs"]["words"] == [["a", "bb"], ["", "ü"]]
    assert (answer["version"], answer["variant"], answer["request_id"]) == ("4", "stable", "r")


def test_the_prediction_is_a_label_where_there_is_one():
    outputs = ReplyReader(SUMS, batched=True).read(sums(0.5, 1.5), 2)
    assert json.loads(write_plain("m", STABLE, wish(2), outputs, 0))["prediction"] == [0, 1]


def test_the_prediction_is_the_one_number_of_a_regression():
    outputs = ReplyReader(SUMS, batched=True).read(sums(0.5, 1.5), 2)[:1]
    assert json.loads(write_plain("m", STABLE, wish(2), outputs, 0))["prediction"] == [0.5, 1.5]


def test_the_prediction_is_the_position_of_the_largest_number():
    assert json.loads(write_plain("m", STABLE, wish(2), shapes(), 0))["prediction"] == [3, 3]


def test_a_cached_layout_is_used_for_equal_heads_only():
    reader = ReplyReader(SUMS, batched=True)
    first = reader.read(sums(0.5, 1.5), 2)[0].rows_json()
    assert reader.read(sums(2.5, 3.5), 2)[0].rows_json() != first
    with pytest.raises(TritonError, match="expected 3 rows, got 2"):
        reader.read(sums(0.5, 1.5), 3)
    whole = sums(0.5, 1.5)
    with pytest.raises(TritonError, match="malformed"):
        reader.read(Reply(200, whole.header_length, whole.body[:-1]), 2)
    assert reader.read(sums(0.5), 1)[0].rows_json() == [first[0]]


def test_rows_without_elements_are_empty_lists():
    empty = Signature(
        inputs=SUMS.inputs, outputs=(Tensor(name="y", datatype="FP32", shape=(-1, -1)),)
    )
    outputs = ReplyReader(empty, batched=True).read(reply(("y", "FP32", [3, 0], b"")), 3)
    body, _ = write_answer(b"{", wish(rows=3), outputs, 0)
    assert json.loads(body)["outputs"][0] == {
        "name": "y", "datatype": "FP32", "shape": [3, 0], "data": []
    }  # fmt: skip
    assert json.loads(write_plain("m", STABLE, wish(rows=2), outputs, 0))["outputs"]["y"] == [
        [],
        [],
    ]
