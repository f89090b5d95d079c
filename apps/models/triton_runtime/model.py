"""Serves `model.onnx`, next to this file, with onnxruntime through Triton's Python backend.

Copied into each version's directory of a model repository where the server has no ONNX Runtime
backend. It runs inside Triton's stub process: it may import numpy and onnxruntime, not Interlock.
Requests of one batch are concatenated, run once, and split again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.batched = config.get("max_batch_size", 0) > 0
        self.input_names = [item["name"] for item in config["input"]]
        self.outputs = [item["name"] for item in config["output"]]
        options = onnxruntime.SessionOptions()
        # One process per instance; more threads would compete for the same cores.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        # Errors go to the caller; invalid rows would fill the log.
        options.log_severity_level = 4
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        inputs = self.session.get_inputs()
        # Triton has no tensors without dimensions: a scalar has shape [1].
        self.scalars = {item.name for item in inputs if not item.shape}
        # BYTES arrives as bytes objects; onnxruntime needs text for string tensors.
        self.text_inputs = {item.name for item in inputs if item.type == "tensor(string)"}

    def execute(self, requests: list[Any]) -> list[Any]:
        if not self.batched or len(requests) == 1:
            return [self._answer_one(request) for request in requests]
        try:
            return self._answer_together(requests)
        except Exception:
            # One invalid request must not fail the other requests of the batch.
            return [self._answer_one(request) for request in requests]

    def _answer_one(self, request: Any) -> Any:
        try:
            return self._respond(self._run(self._inputs(request)))
        except UnicodeDecodeError as error:
            failure = pb_utils.TritonError(
                f"a BYTES input is not UTF-8: {error}", pb_utils.TritonError.INVALID_ARG
            )
            return pb_utils.InferenceResponse(error=failure)
        except Exception as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))

    def _answer_together(self, requests: list[Any]) -> list[Any]:
        inputs = [self._inputs(request) for request in requests]
        sizes = [len(item[self.input_names[0]]) for item in inputs]
        merged = {
            name: np.concatenate([item[name] for item in inputs]) for name in self.input_names
        }
        outputs = self._run(merged)
        if any(len(output) != sum(sizes) for output in outputs):
            # The rows cannot be assigned to requests; each request alone reports its error.
            raise ValueError("an output has a different number of rows than the inputs")
        ends = np.cumsum(sizes)[:-1]
        parts = [np.split(output, ends) for output in outputs]
        return [self._respond([part[i] for part in parts]) for i in range(len(requests))]

    def _inputs(self, request: Any) -> dict[str, Any]:
        inputs = {}
        for name in self.input_names:
            array = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            if name in self.text_inputs:
                array = _texts(array)
            inputs[name] = array.reshape(()) if name in self.scalars else array
        return inputs

    def _run(self, inputs: dict[str, Any]) -> list[Any]:
        arrays = map(np.asarray, self.session.run(self.outputs, inputs))
        return [array if array.ndim else array.reshape(1) for array in arrays]

    def _respond(self, arrays: list[Any]) -> Any:
        tensors = [
            pb_utils.Tensor(name, np.ascontiguousarray(array))
            for array, name in zip(arrays, self.outputs, strict=True)
        ]
        return pb_utils.InferenceResponse(output_tensors=tensors)


def _texts(array: Any) -> Any:
    texts = np.empty(array.size, dtype=object)
    texts[:] = [item.decode() for item in array.ravel()]
    return texts.reshape(array.shape)
