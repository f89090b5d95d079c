"""The model of the benchmarks: 4 or 768 features in, 3 probabilities and a label out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import orjson

from contract.routing import Signature, Tensor

RUNTIME = Path(__file__).parents[1] / "apps" / "models" / "triton_runtime" / "model.py"
CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 64
input [ {{ name: "features" data_type: TYPE_FP32 dims: [ {width} ] }} ]
output [
  {{ name: "probabilities" data_type: TYPE_FP32 dims: [ 3 ] }},
  {{ name: "label" data_type: TYPE_INT64 dims: [ 1 ] }}
]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
{extra}
"""


def signature(width: int) -> Signature:
    """Return the signature of the model with `width` features."""
    return Signature(
        inputs=(Tensor(name="features", datatype="FP32", shape=(-1, width)),),
        outputs=(
            Tensor(name="probabilities", datatype="FP32", shape=(-1, 3)),
            Tensor(name="label", datatype="INT64", shape=(-1, 1)),
        ),
    )


def write(repository: Path, name: str, extra: str = "", width: int = 4) -> None:
    """Write the model to a Triton repository; `extra` is appended to its configuration."""
    version = repository / name / "1"
    version.mkdir(parents=True, exist_ok=True)
    config = CONFIG.format(name=name, extra=extra, width=width)
    (repository / name / "config.pbtxt").write_text(config)
    shutil.copyfile(RUNTIME, version / "model.py")
    (version / "model.onnx").write_bytes(_onnx(width))


def body(width: int, shift: float = 0.0) -> bytes:
    """Return a request of one row."""
    row = [round(5.1 + shift + 0.01 * (i % 90), 6) for i in range(width)]
    tensor = {"name": "features", "datatype": "FP32", "shape": [1, width], "data": row}
    return orjson.dumps({"inputs": [tensor]})


def _onnx(width: int) -> bytes:
    """Return softmax(x · W) and its argmax, with weights from a fixed seed."""
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).normal(size=(width, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["features", "w"], ["z"]),
            helper.make_node("Softmax", ["z"], ["probabilities"], axis=1),
            helper.make_node("ArgMax", ["z"], ["label"], axis=1, keepdims=1),
        ],
        "flowers",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", width])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("label", TensorProto.INT64, ["n", 1]),
        ],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
