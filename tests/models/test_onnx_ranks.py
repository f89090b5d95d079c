"""Ranks are read from ONNX files; other files are errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.models.onnx_ranks import ranks_of
from tests.models.onnx_zoo import KINDS, save

RANKS = {
    "two-and-two": {"a": 3, "b": 2, "y": 2, "z": 3},
    "scalar": {"x": 0, "y": 0},
    "vector": {"x": 1, "y": 1},
    "no-output-shape": {"x": 2, "s": 1},
    "old-initializer": {"x": 2, "w": 1, "y": 2},
}


@pytest.mark.parametrize("name", RANKS)
def test_the_ranks_of_inputs_and_outputs(name: str, tmp_path: Path) -> None:
    assert ranks_of(save(KINDS[name], tmp_path), name) == RANKS[name]


@pytest.mark.parametrize("data", [b"onnx", b"\xff" * 100, b"\x3a\x7f", b"\x3a", b"\x08\xff"])
def test_another_file_is_a_value_error(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"field|wire|number"):
        ranks_of(path, str(data))
