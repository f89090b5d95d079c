"""A model with a settable cost per row: the input is its duration in milliseconds, and the output.

It processes batches in sequence; the cost of a batch is the sum of its rows. It sleeps instead of
computing, so that other processes on two cores do not affect it.
"""

from __future__ import annotations

from pathlib import Path

import orjson

from contract.routing import Signature, Tensor

SIGNATURE = Signature(
    inputs=(Tensor(name="cost_ms", datatype="FP32", shape=(-1, 1)),),
    outputs=(Tensor(name="took_ms", datatype="FP32", shape=(-1, 1)),),
)
# As the control plane configures versions (apps/models/repository.py).
AS_SERVED = (
    "dynamic_batching { max_queue_delay_microseconds: 0 default_queue_policy { "
    "timeout_action: REJECT default_timeout_microseconds: 600000000 allow_timeout_override: true } "
    "}"
)
CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 32
input [ {{ name: "cost_ms" data_type: TYPE_FP32 dims: [ 1 ] }} ]
output [ {{ name: "took_ms" data_type: TYPE_FP32 dims: [ 1 ] }} ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
{extra}
"""
# While a file `drain` exists beside it, the model responds at once, so that the backlog of one run
# does not affect the next.
MODEL = """
import os
import time
from pathlib import Path

import triton_python_backend_utils as pb_utils

DRAIN = str(Path(__file__).with_name("drain"))
SLICE_S = 0.05


class TritonPythonModel:
    def execute(self, requests):
        tensors = [pb_utils.get_input_tensor_by_name(r, "cost_ms").as_numpy() for r in requests]
        until = time.monotonic() + sum(float(tensor.sum()) for tensor in tensors) / 1000
        while not os.path.exists(DRAIN):
            left_s = until - time.monotonic()
            if left_s <= 0:
                break
            time.sleep(min(left_s, SLICE_S))
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("took_ms", tensor)]) for tensor in tensors
        ]
"""


def write(repository: Path, name: str, extra: str = AS_SERVED) -> None:
    """Write the model to a Triton repository; `extra` is appended to its configuration."""
    version = repository / name / "1"
    version.mkdir(parents=True, exist_ok=True)
    (repository / name / "config.pbtxt").write_text(CONFIG.format(name=name, extra=extra))
    (version / "model.py").write_text(MODEL)


def drain(repository: Path, name: str, *, on: bool) -> None:
    """Make the model respond at once (`on`), or with its normal duration."""
    flag = repository / name / "1" / "drain"
    if on:
        flag.touch()
    else:
        flag.unlink(missing_ok=True)


def body(*costs_ms: float) -> bytes:
    """Return a request of rows with these costs."""
    tensor = {"name": "cost_ms", "datatype": "FP32", "shape": [len(costs_ms), 1], "data": costs_ms}
    return orjson.dumps({"inputs": [tensor]})
