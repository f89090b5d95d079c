"""Inputs of the fuzzers for the HTTP protocol and the codec, and the properties that must hold."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

from hypothesis import strategies as st

from contract.routing import Signature, Tensor, UnitKey
from dataplane.codec import Codec
from dataplane.errors import Refusal
from tests.dataplane.h11_oracle import (
    ask_h11,
    ask_ours,
    check_against_h11,
    hostile_bytes,
    plain_requests,
)

PIECES = st.none() | st.integers(1, 60)
SIGNATURE = Signature(
    inputs=(
        Tensor(name="x", datatype="FP32", shape=(-1, 2)),
        Tensor(name="s", datatype="BYTES", shape=(-1, -1)),
    ),
    outputs=(Tensor(name="y", datatype="INT8", shape=(-1, 1)),),
)
WORDS = st.sampled_from(
    ["inputs", "name", "shape", "datatype", "data", "parameters", "outputs", "id", "x", "s", "y",
     "binary_data_size", "binary_data_output", "unit_id", "FP32", "BYTES"]
)  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=3)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)
ITEMS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "s", "y"]) | JSON,
        "datatype": st.sampled_from(["FP32", "BYTES"]) | JSON,
        "shape": st.lists(st.integers(-1, 3), max_size=3) | JSON,
        "data": st.lists(LEAVES, max_size=6) | JSON,
        "parameters": JSON,
    },
)
DOCUMENTS = st.fixed_dictionaries(
    {"inputs": st.lists(ITEMS, max_size=3) | JSON},
    optional={"outputs": JSON, "parameters": JSON, "id": JSON},
)


def well_formed(data: bytes, piece: int | None) -> None:
    """Our protocol finds exactly what h11 finds."""
    ours, refused = ask_ours(data, piece)
    assert (ours, refused) == ask_h11(data)


def damaged(data: bytes, at: int, noise: bytes, piece: int | None) -> None:
    """Our protocol finds nothing that h11 does not."""
    check_against_h11(data[:at] + noise + data[at + len(noise) :], piece)


def codec_bytes(data: bytes, length: int | None) -> None:
    """Any bytes are a valid request or a refusal, and never another exception."""
    _read(data, length)


def codec_documents(document: dict[str, object], tail: bytes) -> None:
    """The same for any JSON, with or without binary data after it."""
    text = json.dumps(document).encode()
    _read(text, None)
    _read(text + tail, len(text))


def _read(data: bytes, length: int | None) -> None:
    codec = Codec(SIGNATURE, UnitKey(), batched=True, rows_max=4)
    try:
        request = codec.read_infer(data, length)
    except Refusal as refusal:
        _check_refusal(refusal)
        return
    assert 1 <= request.rows <= 4
    assert len(request.tensors[0]) == request.rows * 2 * 4
    assert all(math.prod(inner) >= 0 for inner in request.inner)


def _check_refusal(refusal: Refusal) -> None:
    assert refusal.status == 400
    assert refusal.message


FUZZERS: dict[str, tuple[Callable[..., None], dict[str, st.SearchStrategy[object]]]] = {
    "http, well-formed": (well_formed, {"data": plain_requests(), "piece": PIECES}),
    "http, hostile": (check_against_h11, {"data": hostile_bytes, "piece": PIECES}),
    "http, damaged": (
        damaged,
        {
            "data": plain_requests(),
            "at": st.integers(0, 500),
            "noise": st.binary(max_size=4),
            "piece": PIECES,
        },
    ),
    "codec, bytes": (codec_bytes, {"data": st.binary(max_size=80), "length": PIECES}),
    "codec, documents": (codec_documents, {"document": DOCUMENTS, "tail": st.binary(max_size=40)}),
}
