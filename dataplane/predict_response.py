"""The response of `POST /predict`: outputs as nested lists, and a prediction for each row.

The prediction is a label if the model has such an output (one whole number, string or boolean per
row), else the only number per row, else the index of the largest number of the first output.
"""

from __future__ import annotations

from typing import Any

import orjson

from dataplane.batch_reply import NotJson, Output
from dataplane.codec import InferRequest
from dataplane.router import Decision

_FLOATS = {"FP16", "BF16", "FP32", "FP64"}


def write_plain(
    model: str,
    decision: Decision,
    request: InferRequest,
    outputs: list[Output],
    start: int,
) -> bytes:
    """Return the body of the response. Raises NotJson."""
    stop = start + request.rows
    flat = {output.name: _flat(output, start, stop) for output in outputs}
    nested = {
        output.name: [_nest(row, output.inner) for row in flat[output.name]] for output in outputs
    }
    return orjson.dumps(
        {
            "model": model,
            "version": decision.version,
            "variant": decision.variant,
            "request_id": request.id,
            "outputs": nested,
            "prediction": _predictions(outputs, flat),
        }
    )


def _flat(output: Output, start: int, stop: int) -> list[list[Any]]:
    """Return the elements of each row. Raises NotJson for NaN, which the protocol allows."""
    try:
        return [orjson.loads(b"[%b]" % row) for row in output.rows_json()[start:stop]]
    except orjson.JSONDecodeError:
        raise NotJson(f"output {output.name!r} holds NaN or infinity") from None


def _nest(flat: list[Any], inner: tuple[int, ...]) -> Any:
    """Return the elements of one row as lists of shape `inner`; a scalar without a list."""
    if not inner:
        return flat[0]
    if len(inner) == 1:
        return flat
    width = len(flat) // inner[0] if inner[0] else 0
    return [_nest(flat[i * width : (i + 1) * width], inner[1:]) for i in range(inner[0])]


def _predictions(outputs: list[Output], flat: dict[str, list[list[Any]]]) -> list[Any] | None:
    singles = [output for output in outputs if all(len(row) == 1 for row in flat[output.name])]
    labels = [output for output in singles if output.datatype.name not in _FLOATS]
    for output in labels or singles:
        return [row[0] for row in flat[output.name]]
    first = outputs[0]
    if first.datatype.name == "BYTES" or not all(flat[first.name]):
        return None
    return [max(range(len(row)), key=row.__getitem__) for row in flat[first.name]]
