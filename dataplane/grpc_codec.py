"""Converts gRPC messages of the inference protocol to requests and back, by the rules of `codec`.

Tensors come as raw bytes, one for each input in their order, or as typed contents; never as both.
Responses always have raw bytes. The message classes are those of Triton's client.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2 as messages

from dataplane.batch_reply import Output
from dataplane.codec import Codec, InferRequest
from dataplane.datatypes import check_strings, pack, pack_bytes
from dataplane.errors import Refusal, bad_request
from dataplane.inputs import Dims, InputSpec, TensorReader, wrong_parameters
from dataplane.request_bounds import EXTRA_BYTES_MAX

if TYPE_CHECKING:
    from dataplane.serving import Lane, LiveModel

# Fields of one message that are scanned; a request has one for each input and output.
FIELDS_MAX = 1_024
# Numbers of the fields of a ModelInferRequest, and of an input's contents.
_NAME, _VERSION, _INPUT, _RAW = 1, 2, 5, 7
_CONTENTS_FIELD = 5
# Bytes of the wire types of fixed length.
_FIXED_BYTES = {1: 8, 5: 4}
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class Survey(NamedTuple):
    """The result of scanning a ModelInferRequest without parsing it.

    `plain_bytes` are those outside raw contents, which cost no more than a copy.
    """

    name: str
    version: str | None
    plain_bytes: int


def survey(data: bytes) -> Survey:
    """Scan a serialised ModelInferRequest. Raises Refusal.

    An entry of two bytes becomes an object of a hundred, so entries are counted before parsing, and
    everything outside raw and typed contents must be short.
    """
    name = version = ""
    raw_bytes = contents_bytes = 0
    for number, start, end in _fields(data, 0, len(data)):
        if number == _RAW:
            raw_bytes += end - start
        elif number == _INPUT:
            for inner, inner_start, inner_end in _fields(data, start, end):
                contents_bytes += inner_end - inner_start if inner == _CONTENTS_FIELD else 0
        elif number == _NAME:
            name = data[start:end].decode("utf-8", "replace")
        elif number == _VERSION:
            version = data[start:end].decode("utf-8", "replace")
    others = len(data) - raw_bytes - contents_bytes
    if others > EXTRA_BYTES_MAX:
        raise bad_request(
            "too_many_elements",
            f"the message has {others} bytes besides its tensors; at most {EXTRA_BYTES_MAX}",
        )
    return Survey(name, version or None, len(data) - raw_bytes)


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of the length-delimited fields between `at` and `end`."""
    for _ in range(FIELDS_MAX):
        if at >= end:
            return
        tag, at = _varint(data, at, end)
        kind = tag & 7
        if kind == 2:
            length, at = _varint(data, at, end)
            if length > end - at:
                break
            yield tag >> 3, at, at + length
            at += length
        elif kind == 0:
            _, at = _varint(data, at, end)
        elif kind in _FIXED_BYTES:
            at += _FIXED_BYTES[kind]
        else:
            break
    else:
        raise bad_request("too_many_elements", f"the message has over {FIELDS_MAX} fields")
    raise _malformed()


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _malformed()


def parse_request(data: bytes) -> Any:
    """Parse a ModelInferRequest. Raises Refusal."""
    try:
        return messages.ModelInferRequest.FromString(data)
    except DecodeError:
        raise _malformed() from None


def _malformed() -> Refusal:
    return bad_request("malformed_request", "the message is not a valid ModelInferRequest")


def read_message(codec: Codec, message: Any) -> InferRequest:
    """Convert a ModelInferRequest to a request. Raises Refusal."""
    reader = TensorReader(codec.inputs, codec.index, memoryview(b""), booleans=False)
    raw = message.raw_input_contents
    items = message.inputs
    if raw and len(raw) != len(items):
        raise bad_request("wrong_data", f"{len(raw)} raw contents for {len(items)} inputs")
    for at, item in enumerate(items):
        i, spec, dims = reader.begin(item.name, item.datatype, list(item.shape))
        if item.parameters:
            raise _wrong_parameters(spec, item)
        if raw:
            if item.HasField("contents"):
                raise bad_request(
                    "wrong_data", f"input {spec.name!r}: has both contents and raw contents"
                )
            data = _checked(spec, dims, raw[at])
        else:
            data = _pack_contents(spec, dims, item.contents)
        reader.put(i, spec, dims, data)
    request = codec.finish(reader)
    request.id = message.id or None
    if message.parameters:
        codec.read_parameters(read_parameters(message.parameters), request)
    request.binary = True
    if message.outputs:
        requested = [
            {"name": item.name, "parameters": read_parameters(item.parameters)}
            for item in message.outputs
        ]
        request.outputs = tuple((i, True) for i, _ in codec.read_outputs(requested, True))
    return request


def grpc_form(
    model: LiveModel, lane: Lane, request: InferRequest, outputs: list[Output], start: int
) -> tuple[bytes, bytes]:
    """Return the answer as a serialised ModelInferResponse, and its metadata."""
    message = messages.ModelInferResponse(
        model_name=model.name, model_version=lane.decision.version, id=request.id or ""
    )
    stop = start + request.rows
    requested = outputs if request.outputs is None else [outputs[i] for i, _ in request.outputs]
    for output in requested:
        message.outputs.add(
            name=output.name, datatype=output.datatype.name, shape=output.shape(request.rows)
        )
        message.raw_output_contents.append(output.raw(start, stop))
    return lane.provenance, message.SerializeToString()


def read_parameters(parameters: Any) -> dict[str, object]:
    """Convert a map of parameters to plain values. Raises Refusal."""
    plain = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise bad_request("malformed_request", f"parameter {name!r} has no value")
        plain[name] = getattr(parameter, choice)
    return plain


def _wrong_parameters(spec: InputSpec, item: Any) -> Refusal:
    parameters = read_parameters(item.parameters)
    return wrong_parameters(f"input {spec.name!r}", parameters, known=None)


def _checked(spec: InputSpec, dims: Dims, data: bytes) -> bytes:
    expected = dims.count * spec.datatype.size
    if spec.datatype.size == 0:
        check_strings(spec.name, data, dims.count)
    elif len(data) != expected:
        raise bad_request(
            "wrong_data",
            f"input {spec.name!r}: expected {expected} bytes of raw contents, got {len(data)}",
        )
    return data


def _pack_contents(spec: InputSpec, dims: Dims, contents: Any) -> bytes:
    field = _CONTENTS.get(spec.datatype.name)
    if field is None:
        raise bad_request(
            "wrong_data",
            f"input {spec.name!r}: {spec.datatype.name} has no typed contents; send it raw",
        )
    for other, _ in contents.ListFields():
        if other.name != field:
            raise bad_request(
                "wrong_data",
                f"input {spec.name!r}: expected {field} for {spec.datatype.name}, got {other.name}",
            )
    values = list(getattr(contents, field))
    if len(values) != dims.count:
        raise bad_request(
            "wrong_data",
            f"input {spec.name!r}: expected {dims.count} elements in {field}, got {len(values)}",
        )
    if spec.datatype.size == 0:
        return pack_bytes(values)
    return pack(spec.name, spec.datatype, values, booleans=False)
