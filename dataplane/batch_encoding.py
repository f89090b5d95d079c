"""Encodes the call that carries a batch to Triton: HTTP head, JSON, binary tensors.

Everything before the tensors depends only on the key and the number of rows, except the timeout.
The timeout is in a fixed-width field at the end of the JSON, so the rest is encoded once and
cached.
"""

from __future__ import annotations

import orjson

from contract.routing import ModelRoute, VersionRoute
from dataplane.fair_queue import Job

_HEADS_MAX = 256
# Microseconds, padded with spaces, which JSON allows; then `parameters` and the JSON end.
_TIMEOUT_WIDTH = 12
_TIMEOUT_MAX_US = 10**_TIMEOUT_WIDTH - 1


class Encoder:
    """Encodes the calls of one version."""

    __slots__ = ("_batched", "_heads", "_inputs", "_path", "_sizes_fixed")

    def __init__(self, model: ModelRoute, version: VersionRoute) -> None:
        # The inputs in the order of the tensors.
        self._inputs = model.signature.inputs
        # Whether the first dimension is the rows.
        self._batched = model.batched
        # The constant part of the head of each call.
        self._path = b"POST /v2/models/%b/versions/%b/infer HTTP/1.1\r\nhost: triton\r\n" % (
            version.triton_model.encode(),
            version.triton_version.encode(),
        )
        # Whether key and rows fix the size of every tensor; BYTES elements differ in length.
        self._sizes_fixed = all(tensor.datatype != "BYTES" for tensor in self._inputs)
        # The bytes before the timeout, and its maximum, by key and rows; bounded.
        self._heads: dict[tuple[object, int], tuple[bytes, int]] = {}

    def encode(self, jobs: list[Job], rows: int, timeout_s: float) -> bytes:
        """Return the bytes of the call for `jobs`, which Triton may queue for `timeout_s`."""
        first = jobs[0].request
        key = (first.key, rows)
        cached = self._heads.get(key)
        if cached is None:
            cached = self._head(jobs, rows)
            if self._sizes_fixed:
                if len(self._heads) >= _HEADS_MAX:
                    self._heads.clear()
                self._heads[key] = cached
        head, limit_us = cached
        if len(jobs) == 1:
            data = first.tensors[0] if len(first.tensors) == 1 else b"".join(first.tensors)
        elif len(first.tensors) == 1:
            data = b"".join([job.request.tensors[0] for job in jobs])
        else:
            data = b"".join(
                [job.request.tensors[i] for i in range(len(first.tensors)) for job in jobs]
            )
        # 0 would mean no limit.
        timeout_us = min(max(1, int(timeout_s * 1e6)), limit_us)
        return b"%b%12d}}%b" % (head, timeout_us, data)

    def _head(self, jobs: list[Job], rows: int) -> tuple[bytes, int]:
        request = jobs[0].request
        inputs = []
        size = 0
        for i, tensor in enumerate(self._inputs):
            inner = list(request.inner[i])
            length = sum(len(job.request.tensors[i]) for job in jobs)
            size += length
            inputs.append(
                {
                    "name": tensor.name,
                    "datatype": tensor.datatype,
                    "shape": [rows, *inner] if self._batched else inner,
                    "parameters": {"binary_data_size": length},
                }
            )
        parameters = orjson.loads(request.parameters) if request.parameters else {}
        parameters["binary_data_output"] = True
        # The client's own `timeout` parameter for Triton's queue applies if it is shorter.
        limit_us = parameters.pop("timeout", None)
        if type(limit_us) is not int or not 0 < limit_us < _TIMEOUT_MAX_US:
            limit_us = _TIMEOUT_MAX_US
        document = orjson.dumps({"inputs": inputs, "parameters": parameters})
        text = document.removesuffix(b"}}") + b',"timeout":'
        json_length = len(text) + _TIMEOUT_WIDTH + 2
        head = b"%binference-header-content-length: %d\r\ncontent-length: %d\r\n\r\n%b" % (
            self._path,
            json_length,
            json_length + size,
            text,
        )
        return head, limit_us
