"""A model whose rows say what they cost: one number in, the milliseconds that it takes, and out.

It does one batch after the other, with a cost that grows by the row. It sleeps instead of
computing, so that on two cores nobody takes its time away.
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
# While the file `drain` lies beside it, it answers at once: what waits from one run must not burden
# the next.
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
    """Put the model into a Triton repository; `extra` is appended to its configuration."""
    version = repository / name / "1"
    version.mkdir(parents=True, exist_ok=True)
    (repository / name / "config.pbtxt").write_text(CONFIG.format(name=name, extra=extra))
    (version / "model.py").write_text(MODEL)


def drain(repository: Path, name: str, *, on: bool) -> None:
    """Let the model answer at once (`on`), or take its time again."""
    flag = repository / name / "1" / "drain"
    if on:
        flag.touch()
    else:
        flag.unlink(missing_ok=True)


def body(*costs_ms: float) -> bytes:
    """Return a request of rows that cost so much."""
    tensor = {"name": "cost_ms", "datatype": "FP32", "shape": [len(costs_ms), 1], "data": costs_ms}
    return orjson.dumps({"inputs": [tensor]})
