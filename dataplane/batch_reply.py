"""Decodes the reply to a batch, and encodes each request's share of it.

Outputs stay raw bytes until JSON is needed; then they are encoded once for the whole batch, and
each request takes its rows.
"""

from __future__ import annotations

from math import prod

import orjson

from contract.routing import Signature, Tensor
from dataplane.codec import InferRequest
from dataplane.datatypes import DATATYPES, NotJson, rows_json, split_strings
from dataplane.triton import Fault, Reply, TritonError

__all__ = ["Layout", "NotJson", "Output", "ReplyReader", "write_answer"]

_SHAPES_MAX = 256


class Layout:
    """What all answers of one shape share; `inner` is the shape of one row."""

    __slots__ = ("batched", "datatype", "elements", "inner", "name", "one", "rows", "size", "width")

    def __init__(self, tensor: Tensor, shape: list[int], *, batched: bool) -> None:
        # The name in the signature.
        self.name = tensor.name
        # The datatype of the elements.
        self.datatype = DATATYPES[tensor.datatype]
        # The first dimension counts rows.
        self.batched = batched
        # A model without a batch dimension answers one request at a time, which counts as one row.
        self.rows = shape[0] if batched else 1
        # The shape of one row.
        self.inner = tuple(shape[1:] if batched else shape)
        # Elements of one row; may be 0.
        self.elements = prod(self.inner)
        # Bytes of one row; 0 for BYTES, whose rows differ in length.
        self.width = self.elements * self.datatype.size
        # Bytes of all rows.
        self.size = self.width * self.rows
        # The bytes before the elements of an answer of one row.
        self.one = self.head(1)

    def shape(self, rows: int) -> tuple[int, ...]:
        return (rows, *self.inner) if self.batched else self.inner

    def dims(self, rows: int) -> bytes:
        """Return the shape of `rows` rows as JSON without brackets."""
        return b",".join(b"%d" % dim for dim in self.shape(rows))

    def head(self, rows: int) -> bytes:
        """Return the entry of `outputs` up to its first element, for `rows` rows."""
        return b'{"name":%b,"datatype":"%b","shape":[%b],"data":[' % (
            orjson.dumps(self.name),
            self.datatype.name.encode(),
            self.dims(rows),
        )


class Output:
    """One output of a batch."""

    __slots__ = ("_data", "_pieces", "_rows", "datatype", "inner", "layout")

    def __init__(self, layout: Layout, data: memoryview) -> None:
        # Its name and shape.
        self.layout = layout
        # The datatype of the elements.
        self.datatype = layout.datatype
        # The shape of one row.
        self.inner = layout.inner
        # All rows; a view into the reply.
        self._data = data
        # BYTES elements, once raw rows were requested.
        self._pieces: list[bytes] | None = None
        # The JSON of each row, once it was requested.
        self._rows: list[bytes] | None = None

    @property
    def name(self) -> str:
        return self.layout.name

    @property
    def rows(self) -> int:
        return self.layout.rows

    def json(self, start: int, stop: int) -> bytes:
        """Return the entry of `outputs` for rows `start` to `stop`. Raises NotJson."""
        rows = self._rows or self.rows_json()
        if stop - start == 1:
            return b"%b%b]}" % (self.layout.one, rows[start])
        texts = rows[start:stop] if self.layout.elements else ()
        return b"%b%b]}" % (self.layout.head(stop - start), b",".join(texts))

    def rows_json(self) -> list[bytes]:
        """Return the elements of each row as flat JSON without brackets. Raises NotJson."""
        if self._rows is None:
            layout = self.layout
            self._rows = rows_json(layout.name, self.datatype, self._data, layout.rows)
        return self._rows

    def binary_json(self, start: int, stop: int, size: int) -> bytes:
        """Return the entry of `outputs` for `size` bytes of binary data."""
        return b'{"name":%b,"datatype":"%b","shape":[%b],"parameters":{"binary_data_size":%d}}' % (
            orjson.dumps(self.name),
            self.datatype.name.encode(),
            self.layout.dims(stop - start),
            size,
        )

    def raw(self, start: int, stop: int) -> bytes:
        if self.datatype.size:
            width = self.layout.width
            return bytes(self._data[start * width : stop * width])
        if self._pieces is None:
            self._pieces = split_strings(self._data)
        width = prod(self.inner)
        return b"".join(self._pieces[start * width : stop * width])

    @property
    def size_bytes(self) -> int:
        """The bytes of all rows of the batch."""
        return len(self._data)

    def view(self, start: int, stop: int) -> memoryview:
        """Return rows `start` to `stop` without a copy; not for BYTES, whose lengths differ."""
        width = self.layout.width
        return self._data[start * width : stop * width]

    def shape(self, rows: int) -> tuple[int, ...]:
        return self.layout.shape(rows)


# The outputs in the order of the signature, each with the start and end of its bytes after the
# JSON; and the end of the last one.
_Places = tuple[list[tuple[Layout, int, int]], int]


class ReplyReader:
    """Decodes the replies of one version.

    Replies of equal shape begin with equal JSON, so it is parsed and checked once for each shape.
    """

    def __init__(self, signature: Signature, *, batched: bool) -> None:
        # The outputs that every reply must have.
        self._signature = signature
        # Whether the first dimension of each output is the rows.
        self._batched = batched
        # Decoded JSON of replies, by its bytes; bounded.
        self._known: dict[bytes, _Places] = {}

    def read(self, reply: Reply, rows: int) -> list[Output]:
        """Return the outputs of the signature, in its order. Raises TritonError."""
        if reply.status != 200:
            raise reply.error()
        body = reply.body
        length = reply.header_length
        header = body if length is None else body[:length]
        try:
            places, end = self._known.get(header) or self._learn(header)
            if len(header) + end > len(body):
                raise ValueError(f"expected {end} bytes of tensors, got {len(body) - len(header)}")
            view = memoryview(body)[len(header) :]
            outputs = [Output(layout, view[start:stop]) for layout, start, stop in places]
        except KeyError as error:
            raise TritonError(Fault.FAILED, f"the answer lacks {error}") from None
        except (ValueError, TypeError, IndexError) as error:
            raise TritonError(Fault.FAILED, f"the answer is malformed: {error}") from None
        for output in outputs:
            if output.layout.rows != rows:
                raise TritonError(
                    Fault.FAILED,
                    f"output {output.name!r}: expected {rows} rows, got {output.layout.rows}",
                )
        return outputs

    def _learn(self, header: bytes) -> _Places:
        entries: dict[str, tuple[list[int], int, int]] = {}
        at = 0
        for item in orjson.loads(header)["outputs"]:
            size = item["parameters"]["binary_data_size"]
            entries[item["name"]] = (item["shape"], at, at + size)
            at += size
        places = [self._place(tensor, *entries[tensor.name]) for tensor in self._signature.outputs]
        # BYTES outputs differ in length from reply to reply, and so does the JSON before them.
        if all(layout.datatype.size for layout, _, _ in places):
            if len(self._known) >= _SHAPES_MAX:
                self._known.clear()
            self._known[header] = (places, at)
        return places, at

    def _place(
        self, tensor: Tensor, shape: list[int], start: int, stop: int
    ) -> tuple[Layout, int, int]:
        layout = Layout(tensor, shape, batched=self._batched)
        if layout.datatype.size and stop - start != layout.size:
            raise ValueError(
                f"output {tensor.name!r} has {stop - start} bytes, which do not fit shape {shape}"
            )
        return layout, start, stop


def head_of(head: bytes, request: InferRequest) -> bytes:
    """Return `head` with the id of `request`, if it has one."""
    return head if request.id is None else b'%b"id":%b,' % (head, orjson.dumps(request.id))


def write_answer(
    head: bytes, request: InferRequest, outputs: list[Output], start: int
) -> tuple[bytes, int | None]:
    """Return the body of an infer answer, and the length of its JSON part if tensors follow.

    `head` opens the document with the names of model and version; the rows of `request` begin at
    `start`. Raises NotJson.
    """
    stop = start + request.rows
    if request.id is not None:
        head = head_of(head, request)
    if request.outputs is None and not request.binary:
        # The plain case is the hot path.
        entries = [output.json(start, stop) for output in outputs]
        return b'%b"outputs":[%b]}' % (head, b",".join(entries)), None
    requested = request.outputs or tuple((i, True) for i in range(len(outputs)))
    entries = []
    tail = []
    for index, binary in requested:
        if binary:
            data = outputs[index].raw(start, stop)
            tail.append(data)
            entries.append(outputs[index].binary_json(start, stop, len(data)))
        else:
            entries.append(outputs[index].json(start, stop))
    document = b'%b"outputs":[%b]}' % (head, b",".join(entries))
    if not tail:
        return document, None
    return document + b"".join(tail), len(document)
