"""Inspection of ONNX files, and the errors of files that are refused."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper

from apps.lib.errors import Invalid
from apps.models import artifacts, batchability, inspection
from apps.models.artifacts import inspect_onnx
from apps.models.inspection import Refused, inspect
from tests.models.onnx_zoo import KINDS, Kind, build, identity, large, node, numbers, save


def kept(model: onnx.ModelProto, directory: Path) -> Path:
    return save(Kind(model, {}, batched=True), directory)


def sequence_output() -> onnx.ModelProto:
    output = helper.make_tensor_sequence_value_info("y", T.FLOAT, None)
    graph = helper.make_graph(
        [node("SequenceConstruct", "x", "y")],
        "g",
        [helper.make_tensor_value_info("x", T.FLOAT, ["n"])],
        [output],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def optional_input() -> onnx.ModelProto:
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(T.FLOAT, [2]))
    graph = helper.make_graph(
        [node("OptionalHasElement", "x", "y")],
        "g",
        [helper.make_value_info("x", kind)],
        [helper.make_tensor_value_info("y", T.BOOL, [])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def foreign_op() -> onnx.ModelProto:
    return build(
        [helper.make_node("Rot13", ["x"], ["y"], domain="my.ops")],
        [("x", T.FLOAT, ["n"])],
        [("y", T.FLOAT, ["n"])],
        opsets=(("", 17), ("my.ops", 1)),
    )


def newest_opset() -> onnx.ModelProto:
    x, y = ("x", T.FLOAT, ["n"]), ("y", T.FLOAT, ["n"])
    return build([node("Neg", "x", "y")], [x], [y], opsets=(("", 99),))


def no_input() -> onnx.ModelProto:
    return build([node("Identity", "w", "y")], [], [("y", T.FLOAT, [2])], {"w": numbers(2)})


def unknown_rank() -> onnx.ModelProto:
    return build([node("Neg", "x", "y")], [("x", T.FLOAT, None)], [("y", T.FLOAT, None)])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (sequence_output(), "its output 'y' is a sequence, not a tensor"),
        (optional_input(), "its input 'x' is a value of kind optional, not a tensor"),
        (foreign_op(), "my.ops:Rot13"),
        (newest_opset(), "Opset 99 is under development"),
        (no_input(), "takes no input"),
        (unknown_rank(), "its input 'x' does not declare its number of dimensions"),
        (identity(T.BFLOAT16, "n", 4), "'x' has the element type bfloat16"),
        (identity(T.COMPLEX64, "n", 4), "ONNX Runtime cannot load it"),
        (onnx.ModelProto(), "contains no graph"),
    ],
)
def test_an_unservable_model_is_refused_with_the_reason(
    model: onnx.ModelProto, message: str, tmp_path: Path
) -> None:
    with pytest.raises(Refused) as refused:
        inspect(kept(model, tmp_path))
    assert message in str(refused.value)
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize("name", ["../weights", "/etc/passwd", "", "gone"])
def test_external_data_is_read_from_the_same_directory_only(name: str, tmp_path: Path) -> None:
    model = large(rows=10).model
    (tensor,) = model.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = T.EXTERNAL
    tensor.external_data.add(key="location", value=name)
    with pytest.raises(Refused, match="external data"):
        inspect(kept(model, tmp_path))


def test_truncated_external_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = large(rows=100).model
    onnx.save(model, str(path), save_as_external_data=True, location="w")
    os.truncate(tmp_path / "w", 500)
    with pytest.raises(Refused, match="w has 500 bytes: table is cut off"):
        inspect(path)


def test_a_link_is_not_accepted_as_external_data(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(large(rows=100).model, str(path), save_as_external_data=True, location="w")
    (tmp_path / "w").rename(tmp_path / "elsewhere")
    (tmp_path / "w").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused, match="missing"):
        inspect(path)


def test_a_file_that_needs_too_much_memory_is_refused(tmp_path: Path, settings: Any) -> None:
    # A few bytes that ONNX Runtime expands to 8 GB when it loads them.
    shape = np.array([2_000_000_000], np.int64)
    model = build(
        [node("ConstantOfShape", "s", "c"), node("ReduceSum", "c", "r"), node("Add", "x r", "y")],
        [("x", T.FLOAT, [1])],
        [("y", T.FLOAT, [1])],
        {"s": shape},
    )
    settings.INSPECT_MEMORY_BYTES_MAX = 1024**3
    with pytest.raises(Invalid, match="needs more than 1,073,741,824 bytes of memory"):
        inspect_onnx(kept(model, tmp_path))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import time; time.sleep(60)", "within 1 seconds"),
        ("import os; os.kill(os.getpid(), 11)", "crashes when it loads it .SIGSEGV"),
        ("import os; os.kill(os.getpid(), 9)", "more memory to load than is available"),
        ("raise SystemExit(3)", "ended without a result"),
    ],
)
def test_a_file_that_ends_the_process_is_refused(
    script: str, message: str, tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{script}"\n')
    interpreter.chmod(0o755)
    monkeypatch.setattr(artifacts.sys, "executable", str(interpreter))
    settings.INSPECT_TIMEOUT_S = 1
    started = time.monotonic()
    with pytest.raises(Invalid, match=message):
        inspect_onnx(save(KINDS["fixed"], tmp_path))
    assert time.monotonic() - started < 10


def test_a_file_beyond_2_gb_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "ONNX_BYTES_MAX", 10)
    with pytest.raises(Refused, match="save its weights as external data"):
        inspect(save(KINDS["fixed"], tmp_path))


def test_declared_values_apply_without_time_for_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batchability._Runs, "__call__", lambda *_: None)
    assert inspect(save(KINDS["vector"], tmp_path))["batched"]
    assert not inspect(save(KINDS["scalar-output"], tmp_path))["batched"]


def test_a_random_model_is_judged_by_its_shapes(tmp_path: Path) -> None:
    model = build(
        [node("RandomNormalLike", "x", "r"), node("Add", "x r", "y")],
        [("x", T.FLOAT, ["n", 4])],
        [("y", T.FLOAT, ["n", 4])],
    )
    assert inspect(kept(model, tmp_path))["batched"]


def test_a_request_is_recorded_for_a_model_that_refuses_zeros(tmp_path: Path) -> None:
    (request,) = inspect(save(KINDS["picky"], tmp_path))["warmup"]
    assert request[0]["shape"] == [1, 1, 8, 8]
    assert inspect(save(KINDS["vector"], tmp_path))["warmup"] == []
