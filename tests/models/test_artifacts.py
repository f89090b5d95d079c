"""Signatures are read from the ONNX file; unservable files are refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from apps.lib.errors import Invalid
from apps.models.artifacts import inspect_onnx, read_mlflow_model

ONNX_FLAVOUR = "flavors:\n  onnx:\n    data: model.onnx\n"
SIGNATURE = 'signature:\n  inputs: \'[{"name": "x"}]\'\n'


def save(path: Path, shape: list[Any], elem_type: int = TensorProto.FLOAT) -> Path:
    """Write an identity model with a large constant."""
    weight = numpy_helper.from_array(np.zeros(4_096, np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", elem_type, shape)],
        [helper.make_tensor_value_info("y", elem_type, shape)],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)])
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "not an MLflow model"),
        ("flavors:\n  sklearn: {}\n", "no ONNX flavour (it has: sklearn)"),
        (ONNX_FLAVOUR, "no signature"),
        (ONNX_FLAVOUR + SIGNATURE, "model.onnx is missing"),
        ("flavors: [", "cannot be read"),
        ("", "is not a mapping"),
        ("- a list", "is not a mapping"),
    ],
)
def test_an_unservable_mlflow_model_is_refused(
    tmp_path: Path, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "MLmodel").write_text(text)
    with pytest.raises(Invalid) as refused:
        read_mlflow_model(tmp_path)
    assert message in refused.value.message


def test_a_free_first_dimension_is_the_batch(tmp_path: Path) -> None:
    artifact = inspect_onnx(save(tmp_path / "m.onnx", ["n", 4]))
    assert artifact.batched
    assert artifact.signature["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]


def test_a_batched_vector_is_served_as_a_column(tmp_path: Path) -> None:
    artifact = inspect_onnx(save(tmp_path / "m.onnx", ["n"], TensorProto.INT64))
    assert artifact.signature["outputs"][0] == {"name": "y", "datatype": "INT64", "shape": [-1, 1]}


def test_a_fixed_first_dimension_is_not_the_batch(tmp_path: Path) -> None:
    assert not inspect_onnx(save(tmp_path / "m.onnx", [2, 4])).batched


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(Invalid, match="damaged"):
        inspect_onnx(path)


def test_an_element_type_that_cannot_be_served_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="element type"):
        inspect_onnx(save(tmp_path / "m.onnx", ["n", 4], TensorProto.BFLOAT16))


def test_external_data_is_merged_into_the_file(tmp_path: Path) -> None:
    model = onnx.load(str(save(tmp_path / "plain.onnx", ["n", 4])))
    path = tmp_path / "m.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="m.data")
    inspect_onnx(path)
    (tmp_path / "m.data").unlink()
    assert len(onnx.load(str(path)).graph.initializer[0].raw_data) == 4 * 4_096
