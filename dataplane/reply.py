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

__all__ = ["NotJson", "Output", "read_reply", "write_answer"]


class Output:
    """One output of a batch; `inner` is the shape of one row."""

    __slots__ = (
        "_batched",
        "_data",
        "_one",
        "_pieces",
        "_rows",
        "_width",
        "datatype",
        "inner",
        "name",
        "rows",
    )

    def __init__(
        self, tensor: Tensor, shape: list[int], data: memoryview, *, batched: bool
    ) -> None:
        # As the signature names it.
        self.name = tensor.name
        # How its bytes are read.
        self.datatype = DATATYPES[tensor.datatype]
        # The first dimension counts rows.
        self._batched = batched
        # A model without a batch dimension answers one request at a time: one row, so to say.
        self.rows = shape[0] if batched else 1
        # The shape of one row.
        self.inner = tuple(shape[1:] if batched else shape)
        # All rows; a view into the reply.
        self._data = data
        # Bytes of one row; BYTES rows differ in length and are split when first asked for.
        self._width = prod(self.inner) * self.datatype.size
        # BYTES elements, once somebody asked for raw rows.
        self._pieces: list[bytes] | None = None
        # The JSON of each row, once somebody asked.
        self._rows: list[bytes] | None = None
        # What stands before the elements where the answer is one row.
        self._one = b""

    def json(self, start: int, stop: int) -> bytes:
        """Return the entry of `outputs` for rows `start` to `stop`. Raises NotJson."""
        rows = self._rows or self.rows_json()
        if stop - start == 1:
            return b"%b%b]}" % (self._one, rows[start])
        return b"%b%b]}" % (self._head(stop - start), b",".join(rows[start:stop]))

    def rows_json(self) -> list[bytes]:
        """Return the flat elements of each row as JSON without brackets. Raises NotJson."""
        if self._rows is None:
            self._rows = rows_json(self.name, self.datatype, self._data, self.rows)
            self._one = self._head(1)
        return self._rows

    def binary_json(self, start: int, stop: int, size: int) -> bytes:
        """Return the entry of `outputs` for `size` bytes of binary data."""
        return b'{"name":%b,"datatype":"%b","shape":[%b],"parameters":{"binary_data_size":%d}}' % (
            orjson.dumps(self.name),
            self.datatype.name.encode(),
            self._dims(stop - start),
            size,
        )

    def raw(self, start: int, stop: int) -> bytes:
        """Return the bytes of rows `start` to `stop`."""
        if self.datatype.size:
            return bytes(self._data[start * self._width : stop * self._width])
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
        return self._data[start * self._width : stop * self._width]

    def shape(self, rows: int) -> tuple[int, ...]:
        """Return the shape of so many rows."""
        return (rows, *self.inner) if self._batched else self.inner

    def _head(self, rows: int) -> bytes:
        return b'{"name":%b,"datatype":"%b","shape":[%b],"data":[' % (
            orjson.dumps(self.name),
            self.datatype.name.encode(),
            self._dims(rows),
        )

    def _dims(self, rows: int) -> bytes:
        return b",".join(b"%d" % dim for dim in self.shape(rows))


def read_reply(reply: Reply, signature: Signature, rows: int, *, batched: bool) -> list[Output]:
    """Return the outputs of the signature, in its order. Raises TritonError where one is wrong."""
    if reply.status != 200:
        raise reply.error()
    length = reply.header_length
    body = memoryview(reply.body)
    try:
        header = orjson.loads(body if length is None else body[:length])
        at = len(body) if length is None else length
        found: dict[str, tuple[list[int], memoryview]] = {}
        for item in header["outputs"]:
            size = item["parameters"]["binary_data_size"]
            found[item["name"]] = (item["shape"], body[at : at + size])
            at += size
        return [
            _output(tensor, *found[tensor.name], rows, batched=batched)
            for tensor in signature.outputs
        ]
    except KeyError as error:
        raise TritonError(Fault.FAILED, f"the answer lacks {error}") from None
    except (ValueError, TypeError) as error:
        raise TritonError(Fault.FAILED, f"the answer is malformed: {error}") from None


def _output(
    tensor: Tensor, shape: list[int], data: memoryview, rows: int, *, batched: bool
) -> Output:
    output = Output(tensor, shape, data, batched=batched)
    if output.rows != rows:
        raise ValueError(f"output {tensor.name!r} has {output.rows} rows for {rows}")
    size = output.datatype.size
    if size and len(data) != prod(shape) * size:
        raise ValueError(f"output {tensor.name!r} has {len(data)} bytes for shape {shape}")
    return output


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
