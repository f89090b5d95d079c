"""What a batch brought back, and each request's share of it.

Outputs stay raw bytes until somebody wants JSON; then they are encoded once for the whole batch
and each request takes its rows out of that.
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
    """What all answers of one shape have in common; `inner` is the shape of one row."""

    __slots__ = ("batched", "datatype", "elements", "inner", "name", "one", "rows", "size", "width")

    def __init__(self, tensor: Tensor, shape: list[int], *, batched: bool) -> None:
        # As the signature names it.
        self.name = tensor.name
        # How its bytes are read.
        self.datatype = DATATYPES[tensor.datatype]
        # The first dimension counts rows.
        self.batched = batched
        # A model without a batch dimension answers one request at a time: one row, so to say.
        self.rows = shape[0] if batched else 1
        # The shape of one row.
        self.inner = tuple(shape[1:] if batched else shape)
        # Elements of one row; it may have none.
        self.elements = prod(self.inner)
        # Bytes of one row; nought for BYTES, whose rows differ in length.
        self.width = self.elements * self.datatype.size
        # Bytes of all rows.
        self.size = self.width * self.rows
        # What stands before the elements where the answer is one row.
        self.one = self.head(1)

    def shape(self, rows: int) -> tuple[int, ...]:
        """Return the shape of so many rows."""
        return (rows, *self.inner) if self.batched else self.inner

    def dims(self, rows: int) -> bytes:
        """Return the shape of so many rows as JSON without brackets."""
        return b",".join(b"%d" % dim for dim in self.shape(rows))

    def head(self, rows: int) -> bytes:
        """Return the entry of `outputs` up to its first element."""
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
        # How its bytes are read.
        self.datatype = layout.datatype
        # The shape of one row.
        self.inner = layout.inner
        # All rows; a view into the reply.
        self._data = data
        # BYTES elements, once somebody asked for raw rows.
        self._pieces: list[bytes] | None = None
        # The JSON of each row, once somebody asked.
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
        told = rows[start:stop] if self.layout.elements else ()
        return b"%b%b]}" % (self.layout.head(stop - start), b",".join(told))

    def rows_json(self) -> list[bytes]:
        """Return the flat elements of each row as JSON without brackets. Raises NotJson."""
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
        """Return the bytes of rows `start` to `stop`."""
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
        """Return rows `start` to `stop` without a copy; not for BYTES, whose rows differ."""
        width = self.layout.width
        return self._data[start * width : stop * width]

    def shape(self, rows: int) -> tuple[int, ...]:
        """Return the shape of so many rows."""
        return self.layout.shape(rows)


# The outputs in the order of the signature, each with where its bytes begin and end behind the
# JSON, and where the last of them ends.
_Places = tuple[list[tuple[Layout, int, int]], int]


class ReplyReader:
    """Reads the replies of one version.

    Replies of equal shape begin with equal JSON, so it is parsed and checked once for each shape.
    """

    def __init__(self, signature: Signature, *, batched: bool) -> None:
        # What every reply must hold.
        self._signature = signature
        # The first dimension of each output counts rows.
        self._batched = batched
        # What the JSON of a reply says, by its bytes; bounded.
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
                raise ValueError(f"{len(body) - len(header)} bytes of tensors instead of {end}")
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
                    f"output {output.name!r} has {output.layout.rows} rows for {rows}",
                )
        return outputs

    def _learn(self, header: bytes) -> _Places:
        found: dict[str, tuple[list[int], int, int]] = {}
        at = 0
        for item in orjson.loads(header)["outputs"]:
            size = item["parameters"]["binary_data_size"]
            found[item["name"]] = (item["shape"], at, at + size)
            at += size
        places = [self._place(tensor, *found[tensor.name]) for tensor in self._signature.outputs]
        # BYTES differ in length from answer to answer, and so does the JSON before them.
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
            raise ValueError(f"output {tensor.name!r} has {stop - start} bytes for shape {shape}")
        return layout, start, stop


def head_of(head: bytes, request: InferRequest) -> bytes:
    """Return `head` with the id of `request`, where it has one."""
    return head if request.id is None else b'%b"id":%b,' % (head, orjson.dumps(request.id))


def write_answer(
    head: bytes, request: InferRequest, outputs: list[Output], start: int
) -> tuple[bytes, int | None]:
    """Return the body of an infer answer, and how much of it is JSON if tensors follow.

    `head` opens the document with the names of model and version; the rows of `request` begin at
    `start`. Raises NotJson.
    """
    stop = start + request.rows
    if request.id is not None:
        head = head_of(head, request)
    if request.outputs is None and not request.binary:
        # The plain case, and the hot one.
        entries = [output.json(start, stop) for output in outputs]
        return b'%b"outputs":[%b]}' % (head, b",".join(entries)), None
    wanted = request.outputs or tuple((i, True) for i in range(len(outputs)))
    entries = []
    tail = []
    for index, binary in wanted:
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
