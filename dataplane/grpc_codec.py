"""Messages of the inference protocol over gRPC to requests and back, by the rules of `codec`.

Tensors come as raw bytes, one for each input in their order, or as typed contents; never as both.
They always leave as raw bytes. The messages are Triton's own, as its client carries them.
"""

from __future__ import annotations

from typing import Any

from tritonclient.grpc import service_pb2 as messages

from dataplane.codec import Codec, InferRequest
from dataplane.datatypes import check_strings, pack, pack_bytes
from dataplane.errors import Refusal, bad_request
from dataplane.inputs import Dims, InputSpec, TensorReader, wrong_parameters
from dataplane.reply import Output
from dataplane.serving import Lane, LiveModel

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


def read_message(codec: Codec, message: Any) -> InferRequest:
    """Return the request in a ModelInferRequest. Raises Refusal."""
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
                    "wrong_data", f"input {spec.name!r}: contents beside raw contents"
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
        wanted = [
            {"name": item.name, "parameters": read_parameters(item.parameters)}
            for item in message.outputs
        ]
        request.outputs = tuple((i, True) for i, _ in codec.read_outputs(wanted, True))
    return request


def grpc_form(
    model: LiveModel, lane: Lane, request: InferRequest, outputs: list[Output], start: int
) -> tuple[bytes, bytes]:
    """Write the answer as a serialised ModelInferResponse."""
    message = messages.ModelInferResponse(
        model_name=model.name, model_version=lane.decision.version, id=request.id or ""
    )
    stop = start + request.rows
    wanted = outputs if request.outputs is None else [outputs[i] for i, _ in request.outputs]
    for output in wanted:
        message.outputs.add(
            name=output.name, datatype=output.datatype.name, shape=output.shape(request.rows)
        )
        message.raw_output_contents.append(output.raw(start, stop))
    return lane.provenance, message.SerializeToString()


def read_parameters(parameters: Any) -> dict[str, object]:
    """Return a map of parameters as plain values. Raises Refusal."""
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
