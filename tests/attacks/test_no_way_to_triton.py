"""The data plane forwards predictions and nothing else: no control, trace, log or shared memory.

Published exploits of Triton start with those endpoints.
"""

from __future__ import annotations

import pytest

from tests.dataplane.test_predict import INFER, ROW, Plane
from tests.dataplane.worlds import body

CONTROL = [
    "/v2/repository/index",
    "/v2/repository/models/sums.1/load",
    "/v2/repository/models/sums.1/unload",
    "/v2/systemsharedmemory/region/x/register",
    "/v2/systemsharedmemory/status",
    "/v2/cudasharedmemory/region/x/register",
    "/v2/trace/setting",
    "/v2/models/sums/trace/setting",
    "/v2/logging",
    "/v2/models/sums.1/infer",
    "/v2/models/../repository/index",
    "/v2/models/%2e%2e%2frepository%2findex/infer",
    "/v2/models/sums/versions/1%2f..%2f..%2frepository/infer",
    "/v2/models/sums/versions/../../repository/index",
    "//v2/repository/index",
]


@pytest.mark.parametrize("target", CONTROL)
@pytest.mark.parametrize("payload", [b"{}", body(ROW)], ids=["empty", "request"])
async def test_endpoints_that_control_triton_are_not_available(target: str, payload: bytes) -> None:
    plane = Plane()
    answer = await plane.ask(target, payload)
    # Known and refused, unknown, or not a valid name.
    assert answer.status in {400, 404, 405, 501}
    assert not plane.triton.calls


@pytest.mark.parametrize(
    "parameter",
    ["shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"],
)
async def test_a_request_cannot_name_shared_memory(parameter: str) -> None:
    plane = Plane()
    whole = await plane.ask(INFER, body(ROW, parameters={parameter: 1}))
    tensor = body(ROW).replace(
        b'"datatype"', f'"parameters":{{"{parameter}":1}},"datatype"'.encode()
    )
    of_tensor = await plane.ask(INFER, tensor)
    output = body(ROW, outputs=[{"name": "sum", "parameters": {parameter: 1}}])
    of_output = await plane.ask(INFER, output)
    # If it is not refused, the parameter was removed.
    for answer in (whole, of_tensor, of_output):
        assert answer.status in {200, 400}
    assert not any(parameter.encode() in call for call, _ in plane.triton.calls)
