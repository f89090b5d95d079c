"""Requests of the Open Inference Protocol v2 to tensors, checked against the model's signature.

Whatever passes here fits the signature, so it may share a batch with other people's rows: names,
datatypes, shapes, lengths and values are right. What does not pass is a 400 that names the input,
what was expected and what came. The binary-tensor extension is read too.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from typing import Any

import orjson

from contract.routing import Signature, Tensor, UnitKey
from dataplane.datatypes import DATATYPES, Datatype, check_strings, pack, plain_packer
from dataplane.errors import Refusal, bad_request

UNIT_LENGTH_MAX = 200
_SHAPES_MAX = 256
_RESERVED = ("binary_data_output",)
# What reading an unusual or faulty document as if it were the plainest can raise.
_NOT_PLAIN = (KeyError, TypeError, ValueError, AttributeError, struct.error, OverflowError)


@dataclass(frozen=True, slots=True)
class Dims:
    """A request's shape once it was checked: `rows`, and `count` elements over all rows.

    `packer` packs the elements at once; it is None for datatypes that need more than that.
    """

    rows: int
    count: int
    inner: tuple[int, ...]
    packer: struct.Struct | None


@dataclass(slots=True)
class InferRequest:
    """A request whose tensors fit the signature; `tensors` are raw bytes in signature order.

    `key` tells apart what must not share a batch: inner shapes and parameters. `outputs` are the
    requested ones as (index in the signature, as binary data), None for all. `parameters` is the
    JSON of those that go on to the model, empty without any.
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


class InputSpec:
    """One input of the signature, and the shapes that were already found to fit it."""

    __slots__ = ("_batched", "_rows_max", "datatype", "fixed", "inner", "known", "name", "tensor")

    def __init__(self, tensor: Tensor, *, batched: bool, rows_max: int) -> None:
        # The input as the signature states it.
        self.tensor = tensor
        # Its name, for messages and look-ups.
        self.name = tensor.name
        # How its elements are packed.
        self.datatype = DATATYPES[tensor.datatype]
        # The shape of one row, −1 where free.
        self.inner = tensor.shape[1:] if batched else tensor.shape
        # True when every row has the same shape, so that all requests may share batches.
        self.fixed = -1 not in self.inner
        # The first dimension counts rows.
        self._batched = batched
        # Rows that one request may carry.
        self._rows_max = rows_max
        # Shapes seen and found right; a small bounded cache that spares the checks.
        self.known: dict[tuple[int, ...], Dims] = {}

    def dims(self, shape: object) -> Dims:
        """Return what `shape` of a request means. Raises Refusal when it does not fit."""
        if type(shape) is not list:
            raise self._wrong_shape(shape)
        try:
            dims = self.known.get(tuple(shape))
        except TypeError:
            raise self._wrong_shape(shape) from None
        return self._learn(shape) if dims is None else dims

    def _learn(self, shape: list[object]) -> Dims:
        if not all(isinstance(dim, (int, float)) and dim == int(dim) >= 0 for dim in shape):
            raise self._wrong_shape(shape)
        whole = tuple(int(dim) for dim in shape)  # type: ignore[call-overload]
        inner = whole[1:] if self._batched else whole
        rows = whole[0] if self._batched and whole else 1
        fits = len(whole) == len(self.tensor.shape) and all(
            expected in (-1, got) for expected, got in zip(self.inner, inner, strict=True)
        )
        if not fits or rows < 1:
            raise self._wrong_shape(shape)
        if rows > self._rows_max:
            raise bad_request(
                "too_many_rows",
                f"input {self.name!r} carries {rows} rows; one request may carry {self._rows_max}",
            )
        if len(self.known) >= _SHAPES_MAX:
            self.known.clear()
        count = prod(whole)
        dims = self.known[whole] = Dims(rows, count, inner, plain_packer(self.datatype, count))
        return dims

    def _wrong_shape(self, shape: object) -> Refusal:
        expected = list(self.tensor.shape)
        got = orjson.dumps(shape).decode()[:100]
        return bad_request(
            "wrong_shape", f"input {self.name!r}: expected shape {expected}, got {got}"
        )


class Codec:
    """Reads the requests of one model."""

    def __init__(
        self, signature: Signature, unit_key: UnitKey, *, batched: bool, rows_max: int
    ) -> None:
        # The inputs in the order of the signature, which is the order of the tensors.
        self.inputs = [
            InputSpec(tensor, batched=batched, rows_max=rows_max) for tensor in signature.inputs
        ]
        # Outputs by name, for requests that name the ones they want.
        self._outputs = {tensor.name: i for i, tensor in enumerate(signature.outputs)}
        # Positions of the inputs by name.
        self._index = {spec.name: i for i, spec in enumerate(self.inputs)}
        # Which request parameter carries the unit; it is ours and does not reach the model.
        self._unit_parameter = unit_key.parameter
        # The inner shapes of all requests, where the signature leaves none free.
        self._fixed = (
            tuple(spec.inner for spec in self.inputs)
            if all(spec.fixed for spec in self.inputs)
            else None
        )

    def read_infer(self, body: bytes, header_length: int | None = None) -> InferRequest:
        """Parse an infer request; the first `header_length` bytes are JSON, tensors follow.

        Raises Refusal.
        """
        document = _load(body if header_length is None else body[:header_length])
        request = None
        if header_length is None and len(self.inputs) == 1:
            request = self._read_plainest(document, body)
        if request is None:
            request = self._read_carefully(document, body, header_length)
        if len(document) > 1:
            self._read_extras(document, request)
        return request

    def _read_plainest(self, document: dict[str, object], body: bytes) -> InferRequest | None:
        """Read one input of flat numbers, in a shape seen before: nearly every request.

        Returns None for anything else, right or wrong: the careful way tells which.
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
            raise bad_request("malformed_request", "the request has no list 'inputs'")
        tail = memoryview(body)[len(body) if header_length is None else header_length :]
        booleans = b"true" in body or b"false" in body
        reader = _TensorReader(self.inputs, self._index, tail, booleans=booleans)
        for item in items:
            reader.read(item)
        return self._finish(reader)

    def read_rows(self, data: object) -> InferRequest:
        """Read the `data` of a plain predict request: rows, or an object of rows per input.

        Raises Refusal.
        """
        if len(self.inputs) == 1 and type(data) is not dict:
            data = {self.inputs[0].name: data}
        if type(data) is not dict:
            names = ", ".join(repr(spec.name) for spec in self.inputs)
            raise bad_request("malformed_request", f"'data' must be an object with {names}")
        reader = _TensorReader(self.inputs, self._index, memoryview(b""), booleans=True)
        for name, rows in data.items():
            reader.read_nested(name, rows)
        return self._finish(reader)

    def _finish(self, reader: _TensorReader) -> InferRequest:
        tensors = reader.tensors
        missing = [spec.name for spec, t in zip(self.inputs, tensors, strict=True) if t is None]
        if missing:
            names = ", ".join(repr(name) for name in missing)
            raise bad_request("missing_input", f"the request lacks input {names}")
        inner = self._fixed or tuple(dims.inner for dims in reader.dims)
        return InferRequest(
            rows=reader.rows,
            tensors=tensors,  # type: ignore[arg-type]
            key=None if self._fixed is not None else inner,
            inner=inner,
        )

    def _read_extras(self, document: dict[str, object], request: InferRequest) -> None:
        request_id = document.get("id")
        if request_id is not None and type(request_id) is not str:
            raise bad_request("malformed_request", "'id' must be a string")
        request.id = request_id
        parameters = document.get("parameters")
        if parameters is not None:
            self._read_parameters(parameters, request)
        outputs = document.get("outputs")
        if outputs:
            request.outputs = self._read_outputs(outputs, request.binary)

    def _read_parameters(self, parameters: object, request: InferRequest) -> None:
        if type(parameters) is not dict:
            raise bad_request("malformed_request", "'parameters' must be an object")
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

    def _read_outputs(self, items: object, binary: bool) -> tuple[tuple[int, bool], ...]:
        if type(items) is not list:
            raise bad_request("malformed_request", "'outputs' must be a list")
        wanted: dict[int, bool] = {}
        for item in items:
            name = item.get("name") if type(item) is dict else None
            index = self._outputs.get(name) if type(name) is str else None
            if index is None:
                raise bad_request("unknown_output", f"the model has no output {name!r}")
            parameters = item.get("parameters", {})
            if type(parameters) is not dict or not parameters.keys() <= {"binary_data"}:
                raise bad_request(
                    "malformed_request", f"output {name!r}: the only parameter is 'binary_data'"
                )
            wanted[index] = bool(parameters.get("binary_data", binary))
        return tuple(wanted.items())


class _TensorReader:
    """Collects the tensors of one request; each must have as many rows as the first."""

    def __init__(
        self, specs: list[InputSpec], index: dict[str, int], tail: memoryview, *, booleans: bool
    ) -> None:
        # The inputs in the order of the signature.
        self._specs = specs
        # Positions of the inputs by name.
        self._index = index
        # What is left of the binary data behind the JSON.
        self._tail = tail
        # See `pack`.
        self._booleans = booleans
        # The bytes of each input and its dims, in the order of the signature.
        self.tensors: list[bytes | None] = [None] * len(specs)
        # What the shape of each meant.
        self.dims: list[Dims] = [Dims(0, 0, (), None)] * len(specs)
        # Nought until the first tensor was read.
        self.rows = 0

    def read(self, item: object) -> None:
        """Read one entry of `inputs`."""
        if type(item) is not dict:
            raise bad_request("malformed_request", "each of 'inputs' must be an object")
        i, spec = self._spec(item.get("name"))
        datatype = item.get("datatype")
        if datatype != spec.datatype.name:
            raise bad_request(
                "wrong_datatype",
                f"input {spec.name!r}: expected datatype {spec.datatype.name}, got {datatype!r}",
            )
        dims = spec.dims(item.get("shape"))
        parameters = item.get("parameters")
        if parameters and type(parameters) is dict and "binary_data_size" in parameters:
            data = self._take(spec, dims, parameters["binary_data_size"])
        elif parameters:
            raise bad_request(
                "malformed_request", f"input {spec.name!r}: the only parameter is binary_data_size"
            )
        else:
            values = _elements(spec, dims, item.get("data"), item.get("shape"))
            data = pack(spec.name, spec.datatype, values, booleans=self._booleans)
        self._put(i, spec, dims, data)

    def read_nested(self, name: object, rows: object) -> None:
        """Read nested lists whose shape is not stated but follows from the signature."""
        i, spec = self._spec(name)
        shape: list[int] = []
        level = rows
        for _ in spec.tensor.shape:
            if type(level) is not list:
                break
            shape.append(len(level))
            level = level[0] if level else None
        dims = spec.dims(shape)
        values = flatten(spec.name, rows, shape)
        self._put(i, spec, dims, pack(spec.name, spec.datatype, values, booleans=True))

    def _spec(self, name: object) -> tuple[int, InputSpec]:
        i = self._index.get(name) if type(name) is str else None
        if i is None:
            known = ", ".join(repr(spec.name) for spec in self._specs)
            raise bad_request("unknown_input", f"the model has no input {name!r}; it has {known}")
        if self.tensors[i] is not None:
            raise bad_request("malformed_request", f"input {name!r} is given twice")
        return i, self._specs[i]

    def _put(self, i: int, spec: InputSpec, dims: Dims, data: bytes) -> None:
        if self.rows not in (0, dims.rows):
            raise bad_request(
                "wrong_shape",
                f"input {spec.name!r} carries {dims.rows} rows, the inputs before it {self.rows}",
            )
        self.rows = dims.rows
        self.tensors[i] = data
        self.dims[i] = dims

    def _take(self, spec: InputSpec, dims: Dims, size: object) -> bytes:
        datatype: Datatype = spec.datatype
        wrong = datatype.size > 0 and size != dims.count * datatype.size
        if type(size) is not int or size < 0 or size > len(self._tail) or wrong:
            expected = f"{dims.count * datatype.size} bytes" if datatype.size else "its size"
            raise bad_request(
                "wrong_data",
                f"input {spec.name!r}: expected {expected} of binary data, got {size!r} "
                f"with {len(self._tail)} left in the body",
            )
        data, self._tail = bytes(self._tail[:size]), self._tail[size:]
        if datatype.size == 0:
            check_strings(spec.name, data, dims.count)
        return data


def check_unit(unit: object) -> str | None:
    """Return the unit as a string, or None for an empty one. Raises Refusal."""
    if type(unit) is int:
        unit = str(unit)
    if type(unit) is not str or len(unit) > UNIT_LENGTH_MAX:
        raise bad_request(
            "wrong_unit", f"a unit must be a string of at most {UNIT_LENGTH_MAX} characters"
        )
    return unit or None


def flatten(name: str, data: object, shape: list[int]) -> list[object]:
    """Return the elements of nested lists that must have exactly `shape`. Raises Refusal."""
    level: list[object] = [data]
    for depth, expected in enumerate(shape):
        deeper: list[object] = []
        for item in level:
            got = len(item) if type(item) is list else None
            if got != expected:
                found = f"a list of {got}" if got is not None else "no list"
                raise bad_request(
                    "wrong_shape",
                    f"input {name!r}: expected lists of {expected} at depth {depth}, got {found}",
                )
            deeper.extend(item)  # type: ignore[arg-type]
        level = deeper
    return level


def _load(text: bytes) -> dict[str, object]:
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        hint = ""
        if b"NaN" in text or b"Infinity" in text:
            hint = " (JSON has no NaN and no Infinity: send such values as binary data)"
        raise bad_request("malformed_json", f"the body is not JSON: {error}{hint}") from None
    if type(document) is not dict:
        raise bad_request("malformed_request", "the body must be a JSON object")
    return document


load_object = _load


def _elements(spec: InputSpec, dims: Dims, data: object, shape: object) -> list[object]:
    """Return the flat elements of `data`, which may be flat or nested like the shape."""
    if type(data) is not list:
        raise bad_request("wrong_data", f"input {spec.name!r} has no list 'data'")
    if data and type(data[0]) is list:
        data = flatten(spec.name, data, [int(dim) for dim in shape])  # type: ignore[attr-defined]
    if len(data) != dims.count:
        raise bad_request(
            "wrong_data",
            f"input {spec.name!r}: expected {dims.count} elements for shape {shape}, "
            f"got {len(data)}",
        )
    return data
