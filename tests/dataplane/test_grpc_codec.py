import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as messages

from contract.routing import Signature, Tensor, UnitKey
from dataplane.codec import Codec
from dataplane.datatypes import DATATYPES
from dataplane.errors import Refusal
from dataplane.grpc_codec import _CONTENTS, read_message

RAW_ONLY = ("FP16", "BF16")


def codec(datatype):
    tensor = Tensor(name="x", datatype=datatype, shape=(-1, 2))
    output = Tensor(name="y", datatype=datatype, shape=(-1, 2))
    return Codec(Signature((tensor,), (output,)), UnitKey(), batched=True, rows_max=8)


def message(datatype, raw=(), contents=None, **fields):
    tensor = messages.ModelInferRequest.InferInputTensor(
        name="x", datatype=datatype, shape=[1, 2], contents=contents
    )
    return messages.ModelInferRequest(inputs=[tensor], raw_input_contents=list(raw), **fields)


def typed(datatype, values):
    return messages.InferTensorContents(**{_CONTENTS[datatype]: values})


def refusal(reader, payload):
    with pytest.raises(Refusal) as caught:
        read_message(reader, payload)
    assert caught.value.status == 400
    return caught.value.code, caught.value.message


@pytest.mark.parametrize("datatype", [d for d in DATATYPES if d not in ("BYTES", *RAW_ONLY)])
def test_typed_contents_are_the_same_tensor_as_raw_ones(datatype):
    raw = np.array([1, 0], DATATYPES[datatype].dtype).tobytes()
    values = [True, False] if datatype == "BOOL" else [1, 0]
    for payload in (
        message(datatype, [raw]),
        message(datatype, contents=typed(datatype, values)),
    ):
        assert read_message(codec(datatype), payload).tensors == [raw]


def test_strings_may_be_any_bytes():
    raw = b"\x01\0\0\0\xff\0\0\0\0"
    for payload in (
        message("BYTES", [raw]),
        message("BYTES", contents=typed("BYTES", [b"\xff", b""])),
    ):
        assert read_message(codec("BYTES"), payload).tensors == [raw]


@pytest.mark.parametrize("datatype", RAW_ONLY)
def test_half_precision_is_raw_only(datatype):
    assert read_message(codec(datatype), message(datatype, [b"abcd"])).tensors == [b"abcd"]
    contents = messages.InferTensorContents(fp32_contents=[1, 2])
    assert "send it raw" in refusal(codec(datatype), message(datatype, contents=contents))[1]


@pytest.mark.parametrize(
    "payload",
    [
        message("INT8", [b"a"]),
        message("INT8", [b"ab", b"cd"]),
        message("INT8", [b"ab"], contents=typed("INT8", [1, 2])),
        message("INT8", contents=typed("INT8", [1])),
        message("INT8", contents=typed("INT8", [1, 300])),
        message("INT8", contents=typed("FP32", [1, 2])),
        message("INT8"),
    ],
)
def test_contents_that_do_not_fit_are_refused(payload):
    assert refusal(codec("INT8"), payload)[0] == "wrong_data"


def test_id_unit_parameters_and_outputs_are_read():
    payload = message("INT8", [b"ab"], id="7")
    payload.parameters["unit_id"].string_param = "u1"
    payload.parameters["mode"].int64_param = 3
    payload.outputs.add(name="y")
    read = read_message(codec("INT8"), payload)
    assert (read.id, read.unit, read.parameters) == ("7", "u1", b'{"mode":3}')
    assert read.outputs == ((0, True),)


@pytest.mark.parametrize("place", ["request", "input", "output"])
def test_parameters_that_a_proxy_cannot_support_are_refused(place):
    payload = message("INT8", [b"ab"])
    payload.outputs.add(name="y")
    holder = {
        "request": payload,
        "input": payload.inputs[0],
        "output": payload.outputs[0],
    }[place]
    name = "sequence_id" if place == "request" else "shared_memory_region"
    holder.parameters[name].string_param = "s"
    assert refusal(codec("INT8"), payload)[0] == "unsupported_parameter"


def test_a_parameter_without_a_value_is_refused():
    payload = message("INT8", [b"ab"])
    payload.parameters["mode"].SetInParent()
    assert refusal(codec("INT8"), payload)[0] == "malformed_request"
