"""The demo's client of the REST API: what a slow machine makes it meet."""

import httpx
import pytest

from embedded.demo.control import Control, DemoFailed


def control(status: int) -> Control:
    made = Control.__new__(Control)
    transport = httpx.MockTransport(lambda request: httpx.Response(status, json={}))
    made._http = httpx.Client(base_url="http://interlock/api/v1/", transport=transport)
    return made


def test_a_sync_that_runs_already_is_no_failure():
    control(409).sync()
    control(200).sync()


def test_any_other_refusal_of_a_sync_is_one():
    with pytest.raises(DemoFailed):
        control(403).sync()
