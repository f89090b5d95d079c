"""The datatypes of Triton: conversion between JSON values and bytes.

Bytes are little-endian and row-major, as in the binary-tensor extension. The struct module packs a
row of plain Python numbers faster than numpy does, and it refuses values that are not numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import orjson
from numpy.typing import NDArray

from dataplane.errors import Refusal, bad_request


@dataclass(frozen=True)
class Datatype:
    """`size` is bytes per element, 0 for BYTES; `code` is the format character of struct."""

    name: str
    size: int
    code: str
    dtype: str


DATATYPES = {
    datatype.name: datatype
    for datatype in (
        Datatype("BOOL", 1, "?", "?"),
        Datatype("UINT8", 1, "B", "u1"),
        Datatype("UINT16", 2, "H", "<u2"),
        Datatype("UINT32", 4, "I", "<u4"),
        Datatype("UINT64", 8, "Q", "<u8"),
        Datatype("INT8", 1, "b", "i1"),
        Datatype("INT16", 2, "h", "<i2"),
        Datatype("INT32", 4, "i", "<i4"),
        Datatype("INT64", 8, "q", "<i8"),
        Datatype("FP16", 2, "e", "<f2"),
        Datatype("BF16", 2, "f", "<f4"),
        Datatype("FP32", 4, "f", "<f4"),
        Datatype("FP64", 8, "d", "<f8"),
        Datatype("BYTES", 0, "", ""),
    )
}
_KINDS = {str: "a string", bool: "a boolean", list: "a list", dict: "an object", type(None): "null"}
_LENGTH = struct.Struct("<I")
# Arguments of one call of pack; more would take up memory twice.
_PACKED_AT_ONCE = 65_536
_NON_FINITE = {"nan": b"NaN", "inf": b"Infinity", "-inf": b"-Infinity"}


class NotJson(ValueError):
    """Values of an output that JSON cannot represent, such as bytes that are not text."""


def plain_packer(datatype: Datatype, count: int) -> struct.Struct | None:
    """Return the struct that packs `count` numbers at once, None for other datatypes."""
    if datatype.size == 0 or datatype.name in ("BOOL", "BF16"):
        return None
    return _packer(datatype.code, count)


@lru_cache(maxsize=512)
def _packer(code: str, count: int) -> struct.Struct:
    return struct.Struct(f"<{count}{code}")


def pack(name: str, datatype: Datatype, values: list[object], *, booleans: bool) -> bytes:
    """Return the bytes of JSON `values` for the input `name`.

    `booleans` says that the document contains `true` or `false` somewhere, so that each value must
    be checked: struct accepts booleans as numbers. Raises Refusal, naming the element.
    """
    if datatype.size == 0:
        return _pack_strings(name, values)
    if datatype.code == "?":
        if not set(map(type, values)) <= {bool}:
            raise _wrong_element(name, datatype, values)
        return bytes(values)  # type: ignore[arg-type]
    try:
        if len(values) <= _PACKED_AT_ONCE:
            packed = _packer(datatype.code, len(values)).pack(*values)
        else:
            packed = _pack_in_parts(datatype, values)
    except (struct.error, OverflowError):
        raise _wrong_element(name, datatype, values) from None
    if booleans and bool in set(map(type, values)):
        raise _wrong_element(name, datatype, values)
    return packed if datatype.name != "BF16" else _to_bf16(packed)


def _pack_in_parts(datatype: Datatype, values: list[object]) -> bytes:
    parts = bytearray()
    for at in range(0, len(values), _PACKED_AT_ONCE):
        part = values[at : at + _PACKED_AT_ONCE]
        parts += _packer(datatype.code, len(part)).pack(*part)
    return bytes(parts)


def _pack_strings(name: str, values: list[object]) -> bytes:
    elements = []
    for value in values:
        if type(value) is not str:
            raise _wrong_element(name, DATATYPES["BYTES"], values)
        elements.append(value.encode())
    return pack_bytes(elements)


def pack_bytes(elements: list[bytes]) -> bytes:
    """Return BYTES data: each element after its length."""
    return b"".join([piece for data in elements for piece in (_LENGTH.pack(len(data)), data)])


def _to_bf16(packed: bytes) -> bytes:
    """Round float32 bytes to bfloat16, to nearest, ties to even."""
    bits = np.frombuffer(packed, "<u4").astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def _wrong_element(name: str, datatype: Datatype, values: Sequence[object]) -> Refusal:
    for index, value in enumerate(values):
        problem = _problem(datatype, value)
        if problem:
            return bad_request(
                "wrong_data", f"input {name!r}: element {index} {problem}, expected {datatype.name}"
            )
    return bad_request("wrong_data", f"input {name!r}: not {datatype.name} data")


def _problem(datatype: Datatype, value: object) -> str | None:
    """Return what is wrong with one JSON value, or None if it is valid."""
    kind = _KINDS.get(type(value))
    if datatype.name == "BYTES":
        return None if kind == "a string" else f"is {kind or 'a number'}"
    if datatype.name == "BOOL":
        return None if kind == "a boolean" else f"is {kind or 'a number'}"
    if kind is not None:
        return f"is {kind}"
    try:
        _packer(datatype.code, 1).pack(value)
    except OverflowError:
        return f"is {value}, out of range"
    except struct.error:
        fraction = isinstance(value, float)
        return f"is {value}, not a whole number" if fraction else f"is {value}, out of range"
    return None


def check_strings(name: str, data: memoryview | bytes, count: int) -> None:
    """Refuse binary BYTES data that is not exactly `count` length-prefixed elements."""
    at = elements = 0
    while at + 4 <= len(data) and elements < count:
        at += 4 + int(_LENGTH.unpack_from(data, at)[0])
        elements += 1
    if at != len(data) or elements != count:
        raise bad_request(
            "wrong_data", f"input {name!r}: binary data is not {count} length-prefixed elements"
        )


def split_strings(data: memoryview | bytes) -> list[bytes]:
    """Return the elements of BYTES data, each with its length prefix."""
    pieces = []
    at = 0
    while at < len(data):
        end = at + 4 + int(_LENGTH.unpack_from(data, at)[0])
        pieces.append(bytes(data[at:end]))
        at = end
    return pieces


def rows_json(name: str, datatype: Datatype, data: memoryview | bytes, rows: int) -> list[bytes]:
    """Return, for each of `rows` rows, its elements as JSON, separated by commas, no brackets.

    A whole batch is encoded once and then sliced, which keeps answers cheap. Raises NotJson.
    """
    if rows == 0:
        return []
    if datatype.size == 0:
        return _string_rows(name, data, rows)
    text = orjson.dumps(
        as_array(datatype, data).reshape(rows, -1), option=orjson.OPT_SERIALIZE_NUMPY
    )
    pieces = text[2:-2].split(b"],[")
    if b"null" in text:
        _write_non_finite(pieces, as_array(datatype, data).reshape(rows, -1))
    return pieces


def _write_non_finite(pieces: list[bytes], array: NDArray[np.generic]) -> None:
    """Write NaN, Infinity and -Infinity as Triton does and its clients read them."""
    for i, piece in enumerate(pieces):
        if b"null" in piece:
            numbers = piece.split(b",")
            for j, number in enumerate(numbers):
                if number == b"null":
                    numbers[j] = _NON_FINITE[str(array[i, j])]
            pieces[i] = b",".join(numbers)


def as_array(datatype: Datatype, data: memoryview | bytes) -> NDArray[np.generic]:
    """Return the elements as a flat array; BF16 is widened to float32."""
    if datatype.name == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(data, datatype.dtype)


def _string_rows(name: str, data: memoryview | bytes, rows: int) -> list[bytes]:
    try:
        texts = [orjson.dumps(piece[4:].decode()) for piece in split_strings(data)]
    except UnicodeDecodeError:
        raise NotJson(f"output {name!r} is not UTF-8; request it as binary data") from None
    width = len(texts) // rows
    return [b",".join(texts[row * width : (row + 1) * width]) for row in range(rows)]
