"""What changed between two routing tables, for a data plane that has the first one.

A table is its frame (all but the models) and a line for each model (`contract.routing.pieces`), so
that the second table is put together from the lines of the first and those that changed, byte for
byte: its hash is in the delta, and proves it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec
from xxhash import xxh3_128_hexdigest

from contract import SCHEMA
from contract.routing import Name, TableError, pieces

# What a poll accepts besides the whole table, and what a delta is answered as.
MEDIA_TYPE = "application/vnd.interlock.table-delta+json"
_MODELS = b'"models":{'


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """`frame` is the new table without models; `changed` holds new and changed ones, as written.

    `base` is the tag of the table that it is for, `hash` the XXH3-128 of the whole new table.
    """

    base: str
    hash: str
    frame: msgspec.Raw
    changed: dict[Name, msgspec.Raw]
    removed: tuple[Name, ...] = ()
    schema: Literal[1] = SCHEMA  # type: ignore[assignment]


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Delta)
_entries_decoder = msgspec.json.Decoder(dict[Name, msgspec.Raw])


def make_delta(base: str, before: bytes, after: bytes) -> bytes | None:
    """Return the encoded delta from the table `before`, whose tag is `base`, to `after`.

    None for tables that have no line for each model.
    """
    old, new = pieces(before), pieces(after)
    if old is None or new is None:
        return None
    old_lines = set(old[1])
    frame, found = new
    new_lines = list(found)
    changed = _entries(line for line in new_lines if line not in old_lines)
    gone = _entries(old_lines.difference(new_lines))
    return _encoder.encode(
        Delta(
            base=base,
            hash=xxh3_128_hexdigest(after),
            frame=msgspec.Raw(frame),
            changed=changed,
            removed=tuple(sorted(gone.keys() - changed.keys())),
        )
    )


def _entries(lines: Iterable[bytes]) -> dict[Name, msgspec.Raw]:
    return _entries_decoder.decode(b"{%b}" % b",".join(lines))


def decode_delta(data: bytes) -> Delta:
    """Parse a delta. Raises TableError."""
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise TableError(f"not a delta of schema {SCHEMA}: {error}") from error


def lines_of(delta: Delta) -> dict[Name, bytes]:
    """Return the changed lines by their models."""
    return {
        name: b"%b:%b" % (_encoder.encode(name), bytes(raw)) for name, raw in delta.changed.items()
    }


def put_together(delta: Delta, lines: Iterable[bytes]) -> bytes:
    """Return the new table of all of its `lines`, in order. Raises TableError if it is another."""
    frame = bytes(delta.frame)
    at = frame.index(_MODELS) + len(_MODELS) if _MODELS in frame else 0
    data = b"%b\n%b\n%b" % (frame[:at], b",\n".join(lines), frame[at:])
    if xxh3_128_hexdigest(data) != delta.hash:
        raise TableError(f"the delta from {delta.base} does not make the table that it is of")
    return data
