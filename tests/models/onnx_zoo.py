"""ONNX models of every kind that Interlock serves, each with example inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto as T
from onnx import helper, numpy_helper

Array = NDArray[Any]
Declared = Sequence[tuple[str, int, Sequence[int | str | None] | None]]
RANDOM = np.random.default_rng(3)


@dataclass(frozen=True)
class Kind:
    """A model, example inputs, and whether it can be batched."""

    model: onnx.ModelProto
    inputs: dict[str, Array]
    batched: bool


def build(
    nodes: list[Any],
    inputs: Declared,
    outputs: Declared,
    weights: dict[str, Array] | None = None,
    *,
    opsets: tuple[tuple[str, int], ...] = (("", 17),),
    ir_version: int = 8,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*item) for item in inputs],
        [helper.make_tensor_value_info(*item) for item in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    imports = [helper.make_opsetid(*opset) for opset in opsets]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    """Return a node; names are separated by spaces, `-` omits one."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op, names, outputs.split(), **attributes)


def numbers(*shape: int) -> Array:
    return RANDOM.normal(size=shape).astype(np.float32)


def identity(elem_type: int, *dims: int | str) -> onnx.ModelProto:
    return build([node("Identity", "x", "y")], [("x", elem_type, dims)], [("y", elem_type, dims)])


def lstm() -> Kind:
    """A step of a recurrent model: the client sends its state and gets the new one."""
    weights = {"w": numbers(1, 16, 3), "r": numbers(1, 16, 4)}
    model = build(
        [node("LSTM", "x w r - - h c", "y h2 c2", hidden_size=4)],
        [("x", T.FLOAT, ["t", "n", 3]), ("h", T.FLOAT, [1, "n", 4]), ("c", T.FLOAT, [1, "n", 4])],
        [("y", T.FLOAT, ["t", 1, "n", 4]), ("h2", T.FLOAT, [1, "n", 4]),
         ("c2", T.FLOAT, [1, "n", 4])],
        weights,
    )  # fmt: skip
    return Kind(
        model, {"x": numbers(2, 3, 3), "h": numbers(1, 3, 4), "c": numbers(1, 3, 4)}, batched=False
    )


def two_and_two() -> Kind:
    """Two inputs and two outputs of different ranks."""
    model = build(
        [node("ReduceSum", "a axes", "s", keepdims=0), node("Add", "s b", "y"),
         node("Identity", "a", "z")],
        [("a", T.FLOAT, ["n", 2, 3]), ("b", T.FLOAT, ["n", 2])],
        [("y", T.FLOAT, ["n", 2]), ("z", T.FLOAT, ["n", 2, 3])],
        {"axes": np.array([2])},
    )  # fmt: skip
    return Kind(model, {"a": numbers(4, 2, 3), "b": numbers(4, 2)}, batched=True)


def old_initializer() -> Kind:
    """Before IR version 4, initializers are listed among the inputs."""
    model = build(
        [node("Add", "x w", "y")],
        [("x", T.FLOAT, ["n", 4]), ("w", T.FLOAT, [4])],
        [("y", T.FLOAT, ["n", 4])],
        {"w": numbers(4)},
        opsets=(("", 8),),
        ir_version=3,
    )
    return Kind(model, {"x": numbers(2, 4)}, batched=True)


def sequence() -> Kind:
    """Its first dimension is free but not a batch: rows depend on earlier rows."""
    model = build(
        [node("CumSum", "x axis", "y")],
        [("x", T.FLOAT, [None, 4])],
        [("y", T.FLOAT, [None, 4])],
        {"axis": np.array(0)},
    )
    return Kind(model, {"x": numbers(5, 4)}, batched=False)


def picky() -> Kind:
    """Its kernel needs at least five columns: zeros of the smallest shape are invalid."""
    model = build(
        [node("Conv", "x k", "y")],
        [("x", T.FLOAT, ["n", 1, "h", "w"])],
        [("y", T.FLOAT, ["n", 1, "h2", "w2"])],
        {"k": numbers(1, 1, 5, 5)},
    )
    return Kind(model, {"x": numbers(2, 1, 6, 7)}, batched=True)


def large(rows: int = 500_000) -> Kind:
    """Weights of 240 bytes per row, 120 MB by default."""
    table = np.arange(rows * 60, dtype=np.float32).reshape(rows, 60)
    model = build(
        [node("Gather", "table x", "g"), node("Identity", "g", "y")],
        [("x", T.INT64, ["n", 2])],
        [("y", T.FLOAT, ["n", 2, 60])],
        {"table": table},
    )
    return Kind(model, {"x": RANDOM.integers(0, rows, (3, 2))}, batched=True)


def _not(dims: Sequence[int | str]) -> onnx.ModelProto:
    return build([node("Not", "x", "y")], [("x", T.BOOL, dims)], [("y", T.BOOL, dims)])


KINDS: dict[str, Kind] = {
    "two-and-two": two_and_two(),
    "int64": Kind(identity(T.INT64, "n", 2), {"x": RANDOM.integers(-9, 9, (3, 2))}, batched=True),
    "bool": Kind(_not(["n", 3]), {"x": np.array([[True, False, True]] * 2)}, batched=True),
    "half": Kind(identity(T.FLOAT16, "n", 2), {"x": numbers(2, 2).astype(np.float16)}, True),
    "double": Kind(identity(T.DOUBLE, "n", 2), {"x": RANDOM.normal(size=(2, 2))}, batched=True),
    "uint8": Kind(identity(T.UINT8, "n", 2, 2), {"x": np.ones((2, 2, 2), np.uint8)}, batched=True),
    "text": Kind(
        identity(T.STRING, "n", 2),
        {"x": np.array([["é", ""], ["a b", "\x00\U0001f600"]], dtype=object)},
        batched=True,
    ),
    "scalar": Kind(
        build([node("Mul", "x x", "y")], [("x", T.FLOAT, [])], [("y", T.FLOAT, [])]),
        {"x": np.array(3.5, np.float32)},
        batched=False,
    ),
    "scalar-text": Kind(identity(T.STRING), {"x": np.array("é", dtype=object)}, batched=False),
    "scalar-output": Kind(
        build([node("ReduceMean", "x", "y", keepdims=0)], [("x", T.FLOAT, ["n", 4])],
              [("y", T.FLOAT, [])]),
        {"x": numbers(3, 4)},
        batched=False,
    ),
    "vector": Kind(
        build([node("Neg", "x", "y")], [("x", T.FLOAT, ["n"])], [("y", T.FLOAT, ["n"])]),
        {"x": numbers(3)},
        batched=True,
    ),
    "free-dimensions": Kind(
        build([node("Neg", "x", "y")], [("x", T.FLOAT, ["n", "h", "w"])],
              [("y", T.FLOAT, ["n", "h", "w"])]),
        {"x": numbers(2, 3, 5)},
        batched=True,
    ),
    "equal-symbols": Kind(
        build([node("Where", "m a b", "y")],
              [("m", T.BOOL, ["n", "s"]), ("a", T.FLOAT, ["n", "s"]), ("b", T.FLOAT, ["n", "s"])],
              [("y", T.FLOAT, ["n", "s"])]),
        {"m": np.array([[True, False, True]]), "a": numbers(1, 3), "b": numbers(1, 3)},
        batched=True,
    ),
    "pairs": Kind(
        build([node("Transpose", "x", "t", perm=[1, 0]), node("MatMul", "x t", "y")],
              [("x", T.FLOAT, [None, 4])], [("y", T.FLOAT, [None, None])]),
        {"x": numbers(3, 4)},
        batched=False,
    ),
    "fixed": Kind(identity(T.FLOAT, 2, 4), {"x": numbers(2, 4)}, batched=False),
    "state": lstm(),
    "empty-output": Kind(
        build([node("Slice", "x none none", "y")], [("x", T.FLOAT, ["n", 4])],
              [("y", T.FLOAT, ["n", "k"])], {"none": np.array([0, 0])}),
        {"x": numbers(2, 4)},
        batched=False,
    ),
    "zero-width": Kind(
        build([node("Slice", "x none none one", "y")], [("x", T.FLOAT, ["n", 4])],
              [("y", T.FLOAT, ["n", "k"])], {"none": np.array([0]), "one": np.array([1])}),
        {"x": numbers(2, 4)},
        batched=True,
    ),
    "label": Kind(
        build([node("ArgMax", "x", "y", axis=1, keepdims=0), node("Shape", "x", "s")],
              [("x", T.FLOAT, [None, 4])], [("y", T.INT64, [None])]),
        {"x": numbers(5, 4)},
        batched=True,
    ),
    "found-rows": Kind(
        build([node("NonZero", "x", "y")], [("x", T.FLOAT, ["n", 3])],
              [("y", T.INT64, [2, "k"])]),
        {"x": np.array([[0, 1, 0], [1, 0, 1]], np.float32)},
        batched=False,
    ),
    "found-nothing": Kind(
        build([node("NonZero", "x", "y")], [("x", T.FLOAT, ["n", 3])],
              [("y", T.INT64, [2, "k"])]),
        {"x": np.zeros((2, 3), np.float32)},
        batched=False,
    ),
    "wrong-output-batch": Kind(
        build([node("Neg", "x", "y")], [("x", T.FLOAT, ["n", 4])], [("y", T.FLOAT, ["m", 4])]),
        {"x": numbers(3, 4)},
        batched=True,
    ),
    "no-output-shape": Kind(
        build([node("Reshape", "x s", "y")], [("x", T.FLOAT, ["n", 4]), ("s", T.INT64, [2])],
              [("y", T.FLOAT, None)]),
        {"x": numbers(2, 4), "s": np.array([4, 2])},
        batched=False,
    ),
    "old-initializer": old_initializer(),
    "sequence": sequence(),
    "picky": picky(),
    "odd-names": Kind(
        build([helper.make_node("Neg", ['in "a\\b/é'], ["out \U0001f600"])],
              [('in "a\\b/é', T.FLOAT, ["n", 2])], [("out \U0001f600", T.FLOAT, ["n", 2])]),
        {'in "a\\b/é': numbers(2, 2)},
        batched=True,
    ),
    "passed-through": Kind(
        build([node("Neg", "x", "y")], [("x", T.FLOAT, ["n", 2])],
              [("y", T.FLOAT, ["n", 2]), ("x", T.FLOAT, ["n", 2])]),
        {"x": numbers(2, 2)},
        batched=True,
    ),
}  # fmt: skip


def save(kind: Kind, directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "model.onnx"
    onnx.save(kind.model, str(path))
    return path


def directly_asked(kind: Kind) -> Array:
    """Return the first output of onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        kind.model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, kind.inputs)[0])
