"""Cache entries: the rows of one answer for each output, and their encoded JSON."""

from __future__ import annotations

from math import prod

import msgspec
from xxhash import xxh3_64_digest

from contract.routing import Signature
from dataplane.batch_reply import Layout, Output
from dataplane.cache.digest import SCHEMA
from dataplane.datatypes import check_strings
from dataplane.errors import Refusal

# Memory of an entry beyond its bytes; measured, plus a fifth.
OVERHEAD_BYTES = 500
_CHECKSUM_BYTES = 8


class Scope:
    """A version that entries belong to; `origin` is all that its digest depends on."""

    __slots__ = ("alive", "digest", "origin")

    def __init__(self, digest: bytes, origin: object) -> None:
        # Identifies the version in keys.
        self.digest = digest
        # A version that changed under the same number has another scope.
        self.origin = origin
        # False once the version left the table: its entries are dropped, and none is added.
        self.alive = True


class Entry:
    """An answer; immutable. `stored_at` is monotonic seconds."""

    __slots__ = ("inners", "raws", "rows", "scope", "size", "stored_at", "tail")

    def __init__(
        self,
        scope: Scope,
        rows: int,
        inners: tuple[tuple[int, ...], ...],
        raws: tuple[bytes, ...],
        tail: bytes,
        stored_at: float,
    ) -> None:
        # The version that answered.
        self.scope = scope
        # Rows of each output.
        self.rows = rows
        # The shape of one row of each output, in the order of the signature.
        self.inners = inners
        # The bytes of each output.
        self.raws = raws
        # The JSON of all outputs, which follows model, version and id.
        self.tail = tail
        # When the version answered.
        self.stored_at = stored_at
        # Approximate bytes of memory.
        self.size = len(tail) + sum(map(len, raws)) + OVERHEAD_BYTES

    def outputs(self, signature: Signature, *, batched: bool) -> list[Output]:
        """Return the outputs in the form of a batch of only these rows."""
        return _outputs(signature, self.rows, self.inners, self.raws, batched=batched)


def entry_of(scope: Scope, rows: int, outputs: list[Output], start: int, stored_at: float) -> Entry:
    """Return the entry of the rows from `start` on. Raises NotJson."""
    stop = start + rows
    return Entry(
        scope,
        rows,
        tuple(output.inner for output in outputs),
        tuple(output.raw(start, stop) for output in outputs),
        _tail(outputs, start, stop),
        stored_at,
    )


def _tail(outputs: list[Output], start: int, stop: int) -> bytes:
    return b'"outputs":[%b]}' % b",".join([output.json(start, stop) for output in outputs])


def _outputs(
    signature: Signature,
    rows: int,
    inners: tuple[tuple[int, ...], ...],
    raws: tuple[bytes, ...],
    *,
    batched: bool,
) -> list[Output]:
    return [
        Output(
            Layout(tensor, [rows, *inner] if batched else list(inner), batched=batched),
            memoryview(raw),
        )
        for tensor, inner, raw in zip(signature.outputs, inners, raws, strict=True)
    ]


# --- values in Redis ---------------------------------------------------------------------------


class _Value(msgspec.Struct, array_like=True, frozen=True):
    schema: int
    stored_at_ms: int
    rows: int
    inners: tuple[tuple[int, ...], ...]
    raws: tuple[bytes, ...]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Value)


class Corrupt(ValueError):
    """A stored value that must not be used; the message gives the reason."""


def encode_value(entry: Entry, now: float, now_ms: int) -> bytes:
    """Return the form of `entry` in Redis; both clocks were read at the same time."""
    stored_at_ms = now_ms - int((now - entry.stored_at) * 1000)
    data = _encoder.encode(_Value(SCHEMA, stored_at_ms, entry.rows, entry.inners, entry.raws))
    return xxh3_64_digest(data) + data


def decode_value(
    data: bytes,
    scope: Scope,
    rows: int,
    signature: Signature,
    *,
    batched: bool,
    now: float,
    now_ms: int,
) -> Entry:
    """Decode the entry of `rows` rows in `data`. Raises Corrupt."""
    payload = data[_CHECKSUM_BYTES:]
    if xxh3_64_digest(payload) != data[:_CHECKSUM_BYTES]:
        raise Corrupt("the checksum is wrong")
    try:
        value = _decoder.decode(payload)
        if value.schema != SCHEMA or value.rows != rows:
            raise Corrupt(f"schema {value.schema}, {value.rows} rows")
        outputs = _outputs(signature, value.rows, value.inners, value.raws, batched=batched)
        for output, raw in zip(outputs, value.raws, strict=True):
            _check_length(output, value.rows, raw)
        tail = _tail(outputs, 0, value.rows)
    except (msgspec.DecodeError, ValueError, Refusal) as error:
        raise Corrupt(str(error)) from None
    # The clocks of two machines may differ: an answer cannot be from the future.
    age_s = max(0, now_ms - value.stored_at_ms) / 1000
    return Entry(scope, value.rows, value.inners, value.raws, tail, now - age_s)


def _check_length(output: Output, rows: int, raw: bytes) -> None:
    count = rows * prod(output.inner)
    if output.datatype.size == 0:
        check_strings(output.name, raw, count)
    elif len(raw) != count * output.datatype.size:
        raise Corrupt(f"output {output.name!r} has {len(raw)} bytes for {count} elements")
