"""Limits on requests, counted in their bytes before anything is parsed.

A byte of JSON can cost forty bytes of memory and fifty nanoseconds (`[],[],…`), so documents are
limited by what the model's signature can need: length, values, lists and objects. Small bodies are
read at once; others are counted first, which costs a thirtieth of the parsing; large or dense
bodies are read by a separate process (`dataplane.reading`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from contract.routing import Signature
from dataplane.errors import Refusal, bad_request

# Bodies up to this size are read at once: at most 0.2 ms.
SMALL_BYTES_MAX = 4 * 1024
# Bodies up to this size too, if they have few lists, objects and strings: about 1 ms.
CHEAP_BYTES_MAX = 64 * 1024
CHEAP_NODES_MAX = 1_024
# Allowance of any document beyond its inputs: names, parameters, requested outputs.
EXTRA_VALUES_MAX = 4_096
EXTRA_BYTES_MAX = 64 * 1024
# Lists of a document whose inputs have free dimensions, or whose model is not known yet.
LISTS_MAX = 1_000_000
OBJECTS_MAX = 4_096
# Bytes of a number with its comma and indentation.
VALUE_BYTES_MAX = 64
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of a document; None if the signature sets no limit.

    `texts`: values may be strings, whose brackets and commas do not count.
    """

    bytes_max: int | None = None
    values_max: int | None = None
    texts: bool = True


def bounds_of(signature: Signature, *, batched: bool, rows_max: int) -> Bounds:
    """Return the limits of a request for a model with this signature."""
    count: int | None = 0
    for tensor in signature.inputs:
        inner = tensor.shape[1:] if batched else tensor.shape
        if -1 in inner or count is None:
            count = None
            break
        elements = rows_max if batched else 1
        for dim in inner:
            elements *= dim
        count += elements
    texts = any(tensor.datatype == "BYTES" for tensor in signature.inputs)
    if count is None:
        return Bounds(None, None, texts)
    bytes_max = None if texts else count * VALUE_BYTES_MAX + EXTRA_BYTES_MAX
    return Bounds(bytes_max, count + EXTRA_VALUES_MAX, texts)


class Tally:
    """Counts the elements of one document piece by piece, and refuses it as early as possible."""

    __slots__ = ("_bounds", "_length", "_lists", "_objects", "_values")

    def __init__(self, bounds: Bounds) -> None:
        # The limits.
        self._bounds = bounds
        # Bytes so far.
        self._length = 0
        # Commas so far: one fewer than values, or less.
        self._values = 0
        # Opening brackets so far.
        self._lists = 0
        # Opening braces so far.
        self._objects = 0

    def add(self, piece: bytes) -> None:
        """Count `piece`. Raises Refusal: 413 for the length, 400 for the elements."""
        bounds = self._bounds
        self._length += len(piece)
        if bounds.bytes_max is not None and self._length > bounds.bytes_max:
            raise too_large(bounds.bytes_max)
        if not bounds.texts:
            self._count(piece)

    def end(self, text: bytes) -> None:
        """Count a complete document whose strings may contain brackets and commas."""
        if self._bounds.texts and (text.count(b"[") > LISTS_MAX or self._is_dense(text)):
            self._count(_STRING.sub(b"", text))

    def _is_dense(self, text: bytes) -> bool:
        values_max = self._bounds.values_max
        many = values_max is not None and text.count(b",") > values_max
        return many or text.count(b"{") > OBJECTS_MAX

    def _count(self, piece: bytes) -> None:
        self._values += piece.count(b",")
        self._lists += piece.count(b"[")
        self._objects += piece.count(b"{")
        values_max = self._bounds.values_max
        if values_max is not None and self._values >= values_max:
            raise _too_many("values", values_max)
        lists_max = LISTS_MAX if values_max is None else values_max
        if self._lists > lists_max:
            raise _too_many("lists", lists_max)
        if self._objects > OBJECTS_MAX:
            raise _too_many("objects", OBJECTS_MAX)


def check_text(text: bytes, bounds: Bounds) -> None:
    """Raise Refusal unless the document `text` is within `bounds`."""
    tally = Tally(bounds)
    tally.add(text)
    tally.end(text)


def is_cheap(text: bytes) -> bool:
    """Return whether a document is so cheap that the event loop may parse it."""
    if len(text) <= SMALL_BYTES_MAX:
        return True
    if len(text) > CHEAP_BYTES_MAX:
        return False
    return text.count(b"[") + text.count(b"{") + text.count(b'"') <= CHEAP_NODES_MAX


def too_large(bytes_max: int) -> Refusal:
    """Return the refusal of a body that is longer than its request can need."""
    return Refusal(413, "body_too_large", f"the body is larger than {bytes_max} bytes")


def _too_many(what: str, limit: int) -> Refusal:
    return bad_request(
        "too_many_elements",
        f"the body has more than {limit} {what}, more than any valid request can contain",
    )
