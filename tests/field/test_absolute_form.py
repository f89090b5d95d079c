"""A request target may be a whole URL (RFC 9112, 3.2.2), as proxies send."""

import json

import pytest

from tests.dataplane.test_predict import ROW, Plane
from tests.dataplane.wire import Wire, request
from tests.dataplane.worlds import body


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://host/v2", 200),
        ("HTTP://host:8080/v2/", 200),
        ("https://user@[::1]:8443/v2?x=http://y/z", 200),
        ("http://host/v2/models/sums", 200),
        ("http://host/nothing", 404),
        ("http://host", 404),
        ("http://host?/v2", 404),
        ("/http://host/v2", 404),
        ("ftp://host/v2", 404),
    ],
)
async def test_a_whole_url_is_handled_like_its_path(target, status):
    wire = Wire(answer=Plane().application)
    wire.feed(request(target, method="GET"))
    assert wire.statuses == [status]


async def test_a_prediction_may_be_requested_with_a_whole_url():
    answer = await Plane().ask("http://host/v2/models/sums/infer", body(ROW))
    assert (answer.status, answer.json["model_name"]) == (200, "sums")
    assert json.loads(answer.body)["outputs"][0]["data"] == [10.0]
