"""Writes the call that carries a batch to Triton: HTTP head, JSON, binary tensors.

Everything before the tensors depends on the key and the number of rows alone, but for the time
that is left. That stands at the JSON's end in a field of fixed width, so the rest is written once
and kept.
"""

from __future__ import annotations

import orjson

from contract.routing import ModelRoute, VersionRoute
from dataplane.fair_queue import Job

_HEADS_MAX = 256
# Microseconds, padded with blanks, as JSON allows; then the ends of `parameters` and of the JSON.
_TIMEOUT_WIDTH = 12
_TIMEOUT_MAX_US = 10**_TIMEOUT_WIDTH - 1


class Encoder:
    """Writes the calls of one version."""

    __slots__ = ("_batched", "_heads", "_inputs", "_path", "_sizes_fixed")

    def __init__(self, model: ModelRoute, version: VersionRoute) -> None:
        # The inputs in the order of the tensors.
        self._inputs = model.signature.inputs
        # The first dimension counts rows.
        self._batched = model.batched
        # The part of each call's head that never changes.
        self._path = b"POST /v2/models/%b/versions/%b/infer HTTP/1.1\r\nhost: triton\r\n" % (
            version.triton_model.encode(),
            version.triton_version.encode(),
        )
        # BYTES elements differ in length; elsewhere key and rows fix the size of every tensor.
        self._sizes_fixed = all(tensor.datatype != "BYTES" for tensor in self._inputs)
        # What stands before the time left, and the most it may be, by what they depend on; bounded.
        self._heads: dict[tuple[object, int], tuple[bytes, int]] = {}

    def encode(self, jobs: list[Job], rows: int, timeout_s: float) -> bytes:
        """Return the bytes of the call for `jobs`, which Triton may let wait for `timeout_s`."""
        first = jobs[0].request
        key = (first.key, rows)
        kept = self._heads.get(key)
        if kept is None:
            kept = self._head(jobs, rows)
            if self._sizes_fixed:
                if len(self._heads) >= _HEADS_MAX:
                    self._heads.clear()
                self._heads[key] = kept
        head, most_us = kept
        if len(jobs) == 1:
            data = first.tensors[0] if len(first.tensors) == 1 else b"".join(first.tensors)
        elif len(first.tensors) == 1:
            data = b"".join([job.request.tensors[0] for job in jobs])
        else:
            data = b"".join(
                [job.request.tensors[i] for i in range(len(first.tensors)) for job in jobs]
            )
        # Nought would mean that there is no limit.
        timeout_us = min(max(1, int(timeout_s * 1e6)), most_us)
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
        # The client's own time for the queue of Triton holds where it is the shorter one.
        most_us = parameters.pop("timeout", None)
        if type(most_us) is not int or not 0 < most_us < _TIMEOUT_MAX_US:
            most_us = _TIMEOUT_MAX_US
        document = orjson.dumps({"inputs": inputs, "parameters": parameters})
        text = document.removesuffix(b"}}") + b',"timeout":'
        json_length = len(text) + _TIMEOUT_WIDTH + 2
        head = b"%binference-header-content-length: %d\r\ncontent-length: %d\r\n\r\n%b" % (
            self._path,
            json_length,
            json_length + size,
            text,
        )
        return head, most_us
