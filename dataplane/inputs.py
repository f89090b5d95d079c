"""The inputs of a model, and the parsing of a request's tensors against them.

A tensor comes as flat or nested JSON, or as binary data; its bytes are kept. A tensor that does not
fit gets a 400 that names the input, what was expected, and what was sent.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod

import orjson

from contract.routing import Tensor
from dataplane.datatypes import DATATYPES, Datatype, check_strings, pack, plain_packer
from dataplane.errors import Refusal, bad_request

_SHAPES_MAX = 256
# Parameters that are tied to one connection, one machine or one version cannot pass a proxy that
# moves requests between versions. (Besides, Triton 2.51 crashes on some classifications.)
UNSUPPORTED = frozenset(
    ("classification", "sequence_id", "sequence_start", "sequence_end", "shared_memory_region",
     "shared_memory_offset", "shared_memory_byte_size")
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Dims:
    """The checked shape of a request: `rows`, and `count` elements over all rows.

    `packer` packs the elements at once; it is None for datatypes that cannot be packed so.
    """

    rows: int
    count: int
    inner: tuple[int, ...]
    packer: struct.Struct | None


class InputSpec:
    """One input of the signature, and a cache of shapes that fit it."""

    __slots__ = ("_batched", "_rows_max", "datatype", "fixed", "inner", "known", "name", "tensor")

    def __init__(self, tensor: Tensor, *, batched: bool, rows_max: int) -> None:
        # The input in the signature.
        self.tensor = tensor
        # The name, for messages and lookups.
        self.name = tensor.name
        # The datatype of the elements.
        self.datatype = DATATYPES[tensor.datatype]
        # The shape of one row, −1 in free dimensions.
        self.inner = tensor.shape[1:] if batched else tensor.shape
        # True when every row has the same shape, so that all requests may share batches.
        self.fixed = -1 not in self.inner
        # Whether the first dimension is the rows.
        self._batched = batched
        # Maximum rows of one request.
        self._rows_max = rows_max
        # Shapes that were checked and fit; a bounded cache.
        self.known: dict[tuple[int, ...], Dims] = {}

    def dims(self, shape: object) -> Dims:
        """Return the checked shape of a request. Raises Refusal if it does not fit."""
        if type(shape) is not list:
            raise self._wrong_shape(shape)
        try:
            dims = self.known.get(tuple(shape))
        except TypeError:
            raise self._wrong_shape(shape) from None
        return self._learn(shape) if dims is None else dims

    def _learn(self, shape: list[object]) -> Dims:
        # The bounds come first: int() fails for NaN and infinity.
        if not all(
            isinstance(dim, (int, float)) and 0 <= dim < 2**63 and dim == int(dim) for dim in shape
        ):
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
                f"input {self.name!r} has {rows} rows; a request may have at most {self._rows_max}",
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


class TensorReader:
    """Collects the tensors of one request; each must have as many rows as the first."""

    def __init__(
        self, specs: list[InputSpec], index: dict[str, int], tail: memoryview, *, booleans: bool
    ) -> None:
        # The inputs in the order of the signature.
        self._specs = specs
        # Indexes of the inputs by name.
        self._index = index
        # The rest of the binary data after the JSON.
        self._tail = tail
        # See `pack`.
        self._booleans = booleans
        # The bytes of each input, in the order of the signature.
        self.tensors: list[bytes | None] = [None] * len(specs)
        # The checked shape of each input.
        self.dims: list[Dims] = [Dims(0, 0, (), None)] * len(specs)
        # 0 until the first tensor was read.
        self.rows = 0

    def read(self, item: object) -> None:
        """Read one entry of `inputs`."""
        if type(item) is not dict:
            raise bad_request("malformed_request", "each of 'inputs' must be an object")
        i, spec, dims = self.begin(item.get("name"), item.get("datatype"), item.get("shape"))
        parameters = item.get("parameters")
        if parameters and type(parameters) is dict and "binary_data_size" in parameters:
            data = self._take(spec, dims, parameters["binary_data_size"])
        elif parameters:
            raise wrong_parameters(f"input {spec.name!r}", parameters, "binary_data_size")
        else:
            if spec.datatype.name == "BF16":
                raise bad_request(
                    "wrong_datatype",
                    f"input {spec.name!r}: receiving BF16 data via JSON is not supported: "
                    "send it as binary data",
                )
            values = elements(spec, dims, item.get("data"), item.get("shape"))
            data = pack(spec.name, spec.datatype, values, booleans=self._booleans)
        self.put(i, spec, dims, data)

    def begin(self, name: object, datatype: object, shape: object) -> tuple[int, InputSpec, Dims]:
        """Return index and spec of an input, and its checked shape. Raises Refusal."""
        i, spec = self._spec(name)
        if datatype != spec.datatype.name:
            raise bad_request(
                "wrong_datatype",
                f"input {spec.name!r}: expected datatype {spec.datatype.name}, got {datatype!r}",
            )
        return i, spec, spec.dims(shape)

    def check_end(self) -> None:
        """Refuse binary data that no input claimed."""
        if len(self._tail):
            raise bad_request(
                "wrong_data", f"{len(self._tail)} bytes of binary data belong to no input"
            )

    def read_nested(self, name: object, rows: object) -> None:
        """Read nested lists; their shape is not stated, but follows from the signature."""
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
        self.put(i, spec, dims, pack(spec.name, spec.datatype, values, booleans=True))

    def _spec(self, name: object) -> tuple[int, InputSpec]:
        i = self._index.get(name) if type(name) is str else None
        if i is None:
            known = ", ".join(repr(spec.name) for spec in self._specs)
            raise bad_request("unknown_input", f"the model has no input {name!r}; it has {known}")
        if self.tensors[i] is not None:
            raise bad_request("malformed_request", f"input {name!r} is repeated")
        return i, self._specs[i]

    def put(self, i: int, spec: InputSpec, dims: Dims, data: bytes) -> None:
        """Store the bytes of one input. Raises Refusal unless it has the rows of the others."""
        if self.rows not in (0, dims.rows):
            raise bad_request(
                "wrong_shape",
                f"input {spec.name!r} has {dims.rows} rows, the inputs before it have {self.rows}",
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


def flatten(name: str, data: object, shape: list[int]) -> list[object]:
    """Return the elements of nested lists that must have exactly `shape`. Raises Refusal."""
    level: list[object] = [data]
    for depth, expected in enumerate(shape):
        deeper: list[object] = []
        for item in level:
            got = len(item) if type(item) is list else None
            if got != expected:
                actual = f"a list of {got}" if got is not None else "another value"
                raise bad_request(
                    "wrong_shape",
                    f"input {name!r}: expected lists of {expected} at depth {depth}, got {actual}",
                )
            deeper.extend(item)  # type: ignore[arg-type]
        level = deeper
    return level


def elements(spec: InputSpec, dims: Dims, data: object, shape: object) -> list[object]:
    """Return the flat elements of `data`, which may be flat or nested like the shape."""
    if type(data) is not list:
        raise bad_request("wrong_data", f"input {spec.name!r} needs a list 'data'")
    if data and type(data[0]) is list:
        data = flatten(spec.name, data, [int(dim) for dim in shape])  # type: ignore[attr-defined]
    if len(data) != dims.count:
        raise bad_request(
            "wrong_data",
            f"input {spec.name!r}: expected {dims.count} elements for shape {shape}, "
            f"got {len(data)}",
        )
    return data


def wrong_parameters(what: str, parameters: object, known: str | None) -> Refusal:
    """Return the refusal of parameters of an input or output, which takes only `known`."""
    if type(parameters) is dict and not UNSUPPORTED.isdisjoint(parameters):
        return unsupported(what, parameters)
    allowed = f"the only parameter is {known!r}" if known else "it takes no parameters"
    return bad_request("malformed_request", f"{what}: {allowed}")


def unsupported(what: str, parameters: dict[str, object]) -> Refusal:
    """Return the refusal of parameters that a proxy cannot support."""
    names = ", ".join(repr(name) for name in parameters if name in UNSUPPORTED)
    return bad_request("unsupported_parameter", f"{what}: {names} is not supported")
