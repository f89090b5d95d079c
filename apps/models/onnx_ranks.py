"""Reads the ranks of the inputs and outputs of an ONNX file without reading its weights.

A file may have gigabytes of weights. Protobuf writes a length before each field, so weights are
skipped and only some kilobytes are read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

# Numbers of the fields of ModelProto and GraphProto (onnx.proto).
GRAPH = 7
INPUTS_AND_OUTPUTS = (11, 12)
# Protobuf's wire types.
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
VARINT_BYTES_MAX = 10


@lru_cache(maxsize=256)
def ranks_of(path: Path, sha256: str) -> dict[str, int]:
    """Return the ranks by name of input or output; `sha256` is only part of the cache key.

    Tensors of undeclared rank are omitted. Raises OSError; ValueError for a damaged file.
    """
    from onnx import ValueInfoProto

    ranks = {}
    with path.open("rb") as file:
        for number, end in _fields(file, path.stat().st_size):
            if number != GRAPH:
                continue
            for inner, inner_end in _fields(file, end):
                if inner in INPUTS_AND_OUTPUTS:
                    item = ValueInfoProto.FromString(file.read(inner_end - file.tell()))
                    if item.type.tensor_type.HasField("shape"):
                        ranks[item.name] = len(item.type.tensor_type.shape.dim)
    return ranks


def _fields(file: BinaryIO, end: int) -> Iterator[tuple[int, int]]:
    """Yield number and end of each length-delimited field, with the file at its start."""
    while file.tell() < end:
        key = _varint(file)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            _varint(file)
        elif wire == BYTES:
            stop = _varint(file) + file.tell()
            if stop > end:
                raise ValueError("a field is longer than the file")
            yield number, stop
            file.seek(stop)
        elif wire in (FIXED64, FIXED32):
            file.seek(8 if wire == FIXED64 else 4, os.SEEK_CUR)
        else:
            raise ValueError(f"protobuf has no wire type {wire}")


def _varint(file: BinaryIO) -> int:
    value = 0
    for place in range(VARINT_BYTES_MAX):
        byte = file.read(1)
        if not byte:
            raise ValueError("the file ends in the middle of a number")
        value |= (byte[0] & 0x7F) << (7 * place)
        if byte[0] < 0x80:
            return value
    raise ValueError("a number is too long")
