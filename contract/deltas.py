"""Deltas between routing tables, for a data plane that already has the older table.

A table is its frame (everything but the models) and one line per model
(`contract.routing.split_table`). The reader assembles the new table from the unchanged lines of the
old one and the changed lines of the delta, byte for byte; the hash in the delta verifies the
result.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec
from xxhash import xxh3_128_hexdigest

from contract import SCHEMA
from contract.routing import Name, TableError, split_table

# The media type of a delta: polls list it in `accept`, and the response carries it.
MEDIA_TYPE = "application/vnd.interlock.table-delta+json"
_MODELS = b'"models":{'


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """Changes from one table to the next; `frame` is the new table without its models.

    `changed` holds new and changed models as raw JSON, `base` is the tag of the older table, and
    `hash` the XXH3-128 of the whole new table.
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

    None if one of the tables does not have one line per model.
    """
    old, new = split_table(before), split_table(after)
    if old is None or new is None:
        return None
    old_lines = set(old[1])
    frame, lines = new
    new_lines = list(lines)
    changed = _entries(line for line in new_lines if line not in old_lines)
    removed = _entries(old_lines.difference(new_lines))
    return _encoder.encode(
        Delta(
            base=base,
            hash=xxh3_128_hexdigest(after),
            frame=msgspec.Raw(frame),
            changed=changed,
            removed=tuple(sorted(removed.keys() - changed.keys())),
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


def changed_lines(delta: Delta) -> dict[Name, bytes]:
    """Return the changed lines by model name."""
    return {
        name: b"%b:%b" % (_encoder.encode(name), bytes(raw)) for name, raw in delta.changed.items()
    }


def assemble_table(delta: Delta, lines: Iterable[bytes]) -> bytes:
    """Return the new table assembled from its frame and all of its `lines`, in order.

    Raises TableError if the hash of the result is not that of the delta.
    """
    frame = bytes(delta.frame)
    at = frame.index(_MODELS) + len(_MODELS) if _MODELS in frame else 0
    data = b"%b\n%b\n%b" % (frame[:at], b",\n".join(lines), frame[at:])
    if xxh3_128_hexdigest(data) != delta.hash:
        raise TableError(f"the table assembled from the delta of {delta.base} has another hash")
    return data
