"""The demo's client of the REST API on a slow machine."""

import httpx
import pytest

from embedded.demo.control import Control, DemoFailed


def control(status: int) -> Control:
    client = Control.__new__(Control)
    transport = httpx.MockTransport(lambda request: httpx.Response(status, json={}))
    client._http = httpx.Client(base_url="http://interlock/api/v1/", transport=transport)
    return client


def test_a_conflicting_sync_is_not_a_failure():
    control(409).sync()
    control(200).sync()


def test_another_refusal_of_a_sync_is_a_failure():
    with pytest.raises(DemoFailed):
        control(403).sync()
