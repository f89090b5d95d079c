"""The model of the fault tests: a small ONNX file that maps features to probabilities and label."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from contract.routing import Signature, Tensor

FEATURES, CLASSES = 4, 3
SIGNATURE = Signature(
    inputs=(Tensor(name="features", datatype="FP32", shape=(-1, FEATURES)),),
    outputs=(
        Tensor(name="probabilities", datatype="FP32", shape=(-1, CLASSES)),
        Tensor(name="label", datatype="INT64", shape=(-1, 1)),
    ),
)


def write_artifact(path: Path, seed: int = 0) -> Path:
    """Write softmax(x · W) and its argmax, with weights W drawn from `seed`; return the path."""
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(seed).normal(size=(FEATURES, CLASSES)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["features", "w"], ["z"]),
            helper.make_node("Softmax", ["z"], ["probabilities"], axis=1),
            helper.make_node("ArgMax", ["z"], ["label"], axis=1, keepdims=1),
        ],
        "flowers",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", FEATURES])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", CLASSES]),
            helper.make_tensor_value_info("label", TensorProto.INT64, ["n", 1]),
        ],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path
