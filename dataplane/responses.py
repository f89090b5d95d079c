"""The forms of an answer: for an infer request over HTTP, and for `POST /predict`."""

from __future__ import annotations

from collections.abc import Callable

from dataplane.batch_reply import Output, write_answer
from dataplane.codec import InferRequest
from dataplane.predict_response import write_plain
from dataplane.serving import Lane, LiveModel

# Encodes an answer whose rows begin at the index: header lines, and the body. Raises NotJson.
Form = Callable[[LiveModel, Lane, InferRequest, list[Output], int], tuple[bytes, bytes]]


def infer_form(
    model: LiveModel, lane: Lane, request: InferRequest, outputs: list[Output], start: int
) -> tuple[bytes, bytes]:
    """Encode the answer of an infer request, as JSON or with binary tensors after it."""
    body, json_length = write_answer(lane.head, request, outputs, start)
    if json_length is None:
        return lane.headers, body
    length = b"inference-header-content-length: %d\r\n" % json_length
    return lane.binary_headers + length, body


def plain_form(
    model: LiveModel, lane: Lane, request: InferRequest, outputs: list[Output], start: int
) -> tuple[bytes, bytes]:
    """Encode the answer of `POST /predict`."""
    return lane.headers, write_plain(model.name, lane.decision, request, outputs, start)
