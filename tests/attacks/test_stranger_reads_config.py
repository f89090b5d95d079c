"""Metrics and model configurations of an instance require its operator's token."""

import pytest
from tritonclient.grpc import service_pb2

from tests.dataplane.test_predict import Plane
from tests.dataplane.wire import Wire, request

PATHS = (
    "/metrics",
    "/v2/models/stats",
    "/v2/models/sums/stats",
    "/v2/models/sums/versions/1/stats",
    "/v2/models/sums/config",
    "/v2/models/sums/versions/1/config",
)
OPEN = (
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/sums",
    "/v2/models/sums/ready",
)
CALLS = {
    "ModelConfig": service_pb2.ModelConfigRequest(name="sums"),
    "ModelStatistics": service_pb2.ModelStatisticsRequest(),
}


async def test_metrics_and_configurations_need_the_operators_token(door):
    for path in PATHS:
        for headers in (
            {},
            {"x_api_key": "shop"},
            {"authorization": "Bearer shop"},
            {"authorization": "Bearer"},
            {"authorization": "pager"},
        ):
            refused = await door.get(path, **headers)
            assert (refused.status_code, refused.json()["code"]) == (401, "operator_token_wrong")
        assert (await door.get(path, authorization="Bearer pager")).status_code == 200, path
    for path in OPEN:
        assert (await door.get(path)).status_code == 200, path


async def test_the_same_holds_over_grpc(door):
    for method, message in CALLS.items():
        assert await door.call(method, message) == "UNAUTHENTICATED"
        assert await door.call(method, message, x_api_key="shop") == "UNAUTHENTICATED"
        assert await door.call(method, message, authorization="Bearer pager") == "OK"
    assert await door.call("ServerLive", service_pb2.ServerLiveRequest()) == "OK"
    metadata = service_pb2.ModelMetadataRequest(name="sums")
    assert await door.call("ModelMetadata", metadata) == "OK"


@pytest.mark.parametrize("path", PATHS)
async def test_without_a_configured_token_they_are_disabled(path):
    wire = Wire(answer=Plane().application)
    wire.feed(request(path, b"", "authorization: Bearer \r\n", method="GET"))
    assert wire.statuses == [403]
    assert b'"operator_disabled"' in wire.transport.written
