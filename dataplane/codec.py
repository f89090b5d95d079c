"""Decodes requests of the Open Inference Protocol v2 into tensors, checked against the signature.

A request that passes fits the signature, so it may share a batch with rows of other clients: names,
datatypes, shapes, lengths and values are right. Any other request gets a 400 that names the input,
what was expected, and what was sent. The binary-tensor extension is supported.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from contract.request_ids import UNIT_LENGTH_MAX
from contract.routing import Signature, UnitKey
from dataplane.errors import bad_request
from dataplane.inputs import UNSUPPORTED, InputSpec, TensorReader, unsupported, wrong_parameters
from dataplane.request_bounds import bounds_of

_RESERVED = ("binary_data_output",)
# Documents with NaN are parsed by a slower parser, which blocks the event loop.
_NAN_BYTES_MAX = 1024 * 1024
# More digits would only cost time.
_LENGTH_DIGITS_MAX = 12
# Exceptions of the plain path for an unusual or faulty document.
_NOT_PLAIN = (KeyError, TypeError, ValueError, AttributeError, struct.error, OverflowError)


@dataclass(slots=True)
class InferRequest:
    """A request whose tensors fit the signature; `tensors` are raw bytes in signature order.

    `key` distinguishes requests that must not share a batch, by inner shapes and parameters.
    `outputs` are the requested ones as (index in the signature, as binary data), None for all.
    `parameters` is the JSON of the parameters for the model, empty without any. `digest`, `origin`
    and `known_key` (of a scope and a tenant) belong to the cache, which may return the same request
    again: no other field may change once it was read.
    """

    rows: int
    tensors: list[bytes]
    key: object
    inner: tuple[tuple[int, ...], ...]
    id: str | None = None
    unit: str | None = None
    outputs: tuple[tuple[int, bool], ...] | None = None
    binary: bool = False
    parameters: bytes = b""
    digest: bytes | None = None
    origin: tuple[object, bytes, bytes | None] | None = None
    known_key: tuple[object, str, bytes] | None = None


class Spec(NamedTuple):
    """The arguments of a codec."""

    signature: Signature
    unit_key: UnitKey
    batched: bool
    rows_max: int


class Codec:
    """Decodes the requests of one model."""

    def __init__(
        self,
        signature: Signature,
        unit_key: UnitKey,
        *,
        batched: bool,
        rows_max: int,
    ) -> None:
        # Bounds on a document.
        self.bounds = bounds_of(signature, batched=batched, rows_max=rows_max)
        # The arguments for a codec in another process.
        self.spec = Spec(signature, unit_key, batched, rows_max)
        # The inputs in the order of the signature, which is the order of the tensors.
        self.inputs = [
            InputSpec(tensor, batched=batched, rows_max=rows_max) for tensor in signature.inputs
        ]
        # Indexes of the outputs by name, for requests that name outputs.
        self._outputs = {tensor.name: i for i, tensor in enumerate(signature.outputs)}
        # Indexes of the outputs that have no JSON form in the protocol.
        self._json_free = [
            i for i, tensor in enumerate(signature.outputs) if tensor.datatype == "BF16"
        ]
        # Indexes of the inputs by name.
        self.index = {spec.name: i for i, spec in enumerate(self.inputs)}
        # The request parameter that carries the unit; it is not passed on to the model.
        self._unit_parameter = unit_key.parameter
        # The inner shapes of all requests, if the signature leaves none free.
        self._fixed = (
            tuple(spec.inner for spec in self.inputs)
            if all(spec.fixed for spec in self.inputs)
            else None
        )

    def read_infer(self, body: bytes, header_length: int | None = None) -> InferRequest:
        """Parse an infer request; the first `header_length` bytes are JSON, tensors follow.

        Raises Refusal.
        """
        document = _load_with_nan(body if header_length is None else body[:header_length])
        request = None
        if header_length is None and len(self.inputs) == 1:
            request = self._read_plainest(document, body)
        if request is None:
            request = self._read_carefully(document, body, header_length)
        if len(document) > 1:
            self._read_extras(document, request)
        if self._json_free:
            self._check_forms(request)
        return request

    def _read_plainest(self, document: dict[str, object], body: bytes) -> InferRequest | None:
        """Read one input of flat numbers, in a known shape: nearly every request.

        Returns None for anything else, valid or not: the careful path decides.
        """
        spec = self.inputs[0]
        try:
            inputs: Any = document["inputs"]
            (item,) = inputs
            if item["datatype"] != spec.datatype.name or item["name"] != spec.name:
                return None
            dims = spec.known[tuple(item["shape"])]
            tensor = dims.packer.pack(*item["data"])  # type: ignore[union-attr]
        except _NOT_PLAIN:
            return None
        if len(item) != 4 or b"true" in body or b"false" in body:
            return None
        inner = self._fixed
        if inner is not None:
            return InferRequest(dims.rows, [tensor], None, inner)
        return InferRequest(dims.rows, [tensor], (dims.inner,), (dims.inner,))

    def _read_carefully(
        self, document: dict[str, object], body: bytes, header_length: int | None
    ) -> InferRequest:
        items = document.get("inputs")
        if type(items) is not list:
            raise bad_request("malformed_request", "'inputs' must be a list")
        json_length = len(body) if header_length is None else header_length
        tail = memoryview(body)[json_length:]
        text = body if header_length is None else body[:json_length]
        booleans = b"true" in text or b"false" in text
        reader = TensorReader(self.inputs, self.index, tail, booleans=booleans)
        for item in items:
            reader.read(item)
        reader.check_end()
        return self.finish(reader)

    def read_rows(self, data: object) -> InferRequest:
        """Read the `data` of a plain predict request: rows, or an object of rows per input.

        Raises Refusal.
        """
        if len(self.inputs) == 1 and type(data) is not dict:
            data = {self.inputs[0].name: data}
        if type(data) is not dict:
            names = ", ".join(repr(spec.name) for spec in self.inputs)
            raise bad_request("malformed_request", f"'data' must be an object with {names}")
        reader = TensorReader(self.inputs, self.index, memoryview(b""), booleans=True)
        for name, rows in data.items():
            reader.read_nested(name, rows)
        return self.finish(reader)

    def finish(self, reader: TensorReader) -> InferRequest:
        """Return the request whose tensors were read. Raises Refusal where one is missing."""
        tensors = reader.tensors
        missing = [spec.name for spec, t in zip(self.inputs, tensors, strict=True) if t is None]
        if missing:
            names = ", ".join(repr(name) for name in missing)
            raise bad_request("missing_input", f"the request lacks input {names}")
        inner = self._fixed or tuple(dims.inner for dims in reader.dims)
        return InferRequest(
            rows=reader.rows,
            tensors=tensors,  # type: ignore[arg-type]
            key=self.key(inner, b""),
            inner=inner,
        )

    def key(self, inner: tuple[tuple[int, ...], ...], parameters: bytes) -> object:
        """Return the key that distinguishes requests that must not share a batch."""
        own = None if self._fixed is not None else inner
        return (own, parameters) if parameters else own

    def _read_extras(self, document: dict[str, object], request: InferRequest) -> None:
        request_id = document.get("id")
        if request_id is not None and type(request_id) is not str:
            raise bad_request("malformed_request", "'id' must be a string")
        request.id = request_id
        parameters = document.get("parameters")
        if parameters is not None:
            self.read_parameters(parameters, request)
        outputs = document.get("outputs")
        if outputs:
            request.outputs = self.read_outputs(outputs, request.binary)

    def read_parameters(self, parameters: object, request: InferRequest) -> None:
        """Read the parameters of the whole request. Raises Refusal."""
        if type(parameters) is not dict:
            raise bad_request("malformed_request", "'parameters' must be an object")
        if not UNSUPPORTED.isdisjoint(parameters):
            raise unsupported("the request", parameters)
        for name, value in parameters.items():
            if type(value) not in (str, int, float, bool):
                raise bad_request(
                    "malformed_request", f"parameter {name!r} must be a string, number or boolean"
                )
        request.binary = parameters.get("binary_data_output") is True
        unit = parameters.get(self._unit_parameter)
        if unit is not None:
            request.unit = check_unit(unit)
        own = {
            name: value
            for name, value in parameters.items()
            if name != self._unit_parameter and name not in _RESERVED
        }
        if own:
            request.parameters = orjson.dumps(own, option=orjson.OPT_SORT_KEYS)
            request.key = (request.key, request.parameters)

    def _check_forms(self, request: InferRequest) -> None:
        """Refuse a request whose answer would need BF16 in JSON: Triton has no such form."""
        forms = dict(request.outputs) if request.outputs is not None else {}
        for i in self._json_free:
            requested = request.outputs is None or i in forms
            if requested and not forms.get(i, request.binary):
                raise bad_request(
                    "wrong_datatype",
                    "sending BF16 data via JSON is not supported: request it as binary data",
                )

    def read_outputs(self, items: object, binary: bool) -> tuple[tuple[int, bool], ...]:
        """Return the requested outputs, as (index, as binary data). Raises Refusal."""
        if type(items) is not list:
            raise bad_request("malformed_request", "'outputs' must be a list")
        requested: dict[int, bool] = {}
        for item in items:
            name = item.get("name") if type(item) is dict else None
            index = self._outputs.get(name) if type(name) is str else None
            if index is None:
                raise bad_request("unknown_output", f"the model has no output {name!r}")
            parameters = item.get("parameters", {})
            if type(parameters) is not dict or not parameters.keys() <= {"binary_data"}:
                raise wrong_parameters(f"output {name!r}", parameters, "binary_data")
            requested[index] = bool(parameters.get("binary_data", binary))
        return tuple(requested.items())


def check_unit(unit: object) -> str | None:
    """Return the unit as a string, or None for an empty one. Raises Refusal."""
    if type(unit) is int:
        unit = str(unit)
    if type(unit) is not str or len(unit) > UNIT_LENGTH_MAX:
        raise bad_request(
            "wrong_unit", f"a unit must be a string of at most {UNIT_LENGTH_MAX} characters"
        )
    return unit or None


def read_header_length(value: bytes, body: bytes) -> int:
    """Return the length of the JSON in `body`. Raises Refusal."""
    if not value.isdigit() or len(value) > _LENGTH_DIGITS_MAX or int(value) > len(body):
        raise bad_request(
            "malformed_request", "Inference-Header-Content-Length must be a length within the body"
        )
    return int(value)


def load_object(text: bytes) -> dict[str, object]:
    """Parse the JSON object in `text`. Raises Refusal."""
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        hint = ""
        if _may_hold_nan(text):
            hint = " (JSON has no NaN and no Infinity: send such values as binary data)"
        raise bad_request("malformed_json", f"the body is not valid JSON: {error}{hint}") from None
    return _object(document)


def _load_with_nan(text: bytes) -> dict[str, object]:
    """Parse the JSON object in `text`, which may hold NaN and Infinity, as for Triton."""
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        if not _may_hold_nan(text) or len(text) > _NAN_BYTES_MAX:
            return load_object(text)
        try:
            document = json.loads(text.decode())
            orjson.dumps(document)  # This parser also accepts lone surrogates and infinite numbers.
        except (ValueError, TypeError, RecursionError) as error:
            raise bad_request("malformed_json", f"the body is not valid JSON: {error}") from None
    return _object(document)


def _may_hold_nan(text: bytes) -> bool:
    return b"NaN" in text or b"Infinity" in text


def _object(document: object) -> dict[str, object]:
    if type(document) is not dict:
        raise bad_request("malformed_request", "the body must be a JSON object")
    return document
