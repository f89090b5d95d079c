"""Compares a prediction of Triton's Python backend with ONNX Runtime's, at every start.

With an incompatible numpy in the stub's environment inputs are silently corrupted: every health
check passes and every prediction is wrong.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from embedded.part import EX_TEMPFAIL
from embedded.triton import CONTROL_HEADER

Array = npt.NDArray[np.float32]

MODEL = "interlock_selftest"
ROWS, COLUMNS = 64, 8
# A timeout is not a wrong answer: the test is run again.
TIMEOUT_S = 120.0

CONFIG = f"""name: "{MODEL}"
backend: "python"
input [ {{ name: "x" data_type: TYPE_FP32 dims: [ -1, {COLUMNS} ] }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [ -1, {COLUMNS} ] }} ]
"""

BACKEND_MODEL = """from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        if int(np.__version__.split(".")[0]) >= 2:
            raise RuntimeError(f"numpy {np.__version__} corrupts inputs here; it must be below 2")
        model = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(
            str(model), providers=["CPUExecutionProvider"]
        )

    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb.get_input_tensor_by_name(request, "x").as_numpy()
            (y,) = self.session.run(["y"], {"x": x})
            responses.append(pb.InferenceResponse([pb.Tensor("y", y)]))
        return responses
"""


class SelfTestFailed(Exception):
    """Triton's predictions are wrong."""


def make_onnx() -> bytes:
    """Return the model y = x · W + b; all entries of W differ."""
    from onnx import TensorProto, helper, numpy_helper

    weights = np.arange(COLUMNS * COLUMNS, dtype=np.float32).reshape(COLUMNS, COLUMNS) / 7
    bias = np.linspace(-1, 1, COLUMNS, dtype=np.float32)
    shape = [None, COLUMNS]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["xw"]),
            helper.make_node("Add", ["xw", "b"], ["y"]),
        ],
        MODEL,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def write_model(repository: Path, onnx_bytes: bytes) -> Path:
    """Move the model into the repository in one step, so that Triton never reads half of it."""
    target, building = repository / MODEL, repository.parent / f"{MODEL}.new"
    for directory in (target, building):
        shutil.rmtree(directory, ignore_errors=True)
    (building / "1").mkdir(parents=True)
    (building / "config.pbtxt").write_text(CONFIG)
    (building / "1" / "model.py").write_text(BACKEND_MODEL)
    (building / "1" / "model.onnx").write_bytes(onnx_bytes)
    building.replace(target)
    return target


def check(repository: Path, triton_url: str, token: str = "") -> None:
    """Load the model, compare a prediction, unload the model.

    `token` authorises Triton's control APIs.

    Raises:
        SelfTestFailed: the prediction is wrong, or Triton refused a request.
        httpx.HTTPError: Triton did not respond.
    """
    import onnxruntime

    onnx_bytes = make_onnx()
    session = onnxruntime.InferenceSession(onnx_bytes, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).normal(size=(ROWS, COLUMNS)).astype(np.float32)
    (expected,) = session.run(["y"], {"x": x})
    directory = write_model(repository, onnx_bytes)
    headers = {CONTROL_HEADER: token}
    with httpx.Client(
        base_url=triton_url, headers=headers, timeout=TIMEOUT_S, trust_env=False
    ) as client:
        try:
            _post(client, f"/v2/repository/models/{MODEL}/load", {})
            answer = _infer(client, x)
        finally:
            client.post(f"/v2/repository/models/{MODEL}/unload", json={})
            shutil.rmtree(directory, ignore_errors=True)
    if wrong := _wrong_rows(answer, expected):
        raise SelfTestFailed(
            f"Triton's predictions differ from ONNX Runtime's in {wrong} rows of {ROWS}. The numpy "
            f"of this environment is {np.__version__}; Triton's Python backend needs numpy < 2."
        )


def _infer(client: httpx.Client, x: Array) -> Array:
    request = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    output = _post(client, f"/v2/models/{MODEL}/infer", {"inputs": [request]})["outputs"][0]
    return np.asarray(output["data"], dtype=np.float32).reshape(output["shape"])


def _wrong_rows(answer: Array, expected: Array) -> int:
    if answer.shape != expected.shape:
        return ROWS
    return int((~np.isclose(answer, expected, atol=1e-4).all(axis=1)).sum())


def _post(client: httpx.Client, path: str, document: dict[str, Any]) -> Any:
    response = client.post(path, json=document)
    if response.status_code != httpx.codes.OK:
        raise SelfTestFailed(f"Triton refused POST {path}: {response.text}")
    return response.json() if response.content else {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", type=Path)
    parser.add_argument("triton_url")
    options = parser.parse_args()
    try:
        token = os.environ.get("INTERLOCK_TRITON_TOKEN", "")
        check(options.repository, options.triton_url, token)
    except SelfTestFailed as error:
        print(f"Triton's self-test failed: {error}")
        return 1
    except httpx.HTTPError as error:
        print(f"Triton did not respond to the self-test: {type(error).__name__} {error}")
        return EX_TEMPFAIL
    print("Triton's predictions agree with ONNX Runtime's")
    return 0


if __name__ == "__main__":
    sys.exit(main())
