"""A batcher returned upstream errors with HTTP 200 (kserve #1530). Here an error stays an error."""

from __future__ import annotations

import asyncio

import pytest

from contract.routing import Breaker
from tests.dataplane.shadow.shades import shades


def reply(status, content=b"", headers=b""):
    head = b"HTTP/1.1 %d X\r\n%bcontent-length: %d\r\n\r\n"
    return head % (status, headers, len(content)) + content


PATIENT = Breaker(window=100, failures=100)
LENGTH = b"inference-header-content-length: %d\r\n"
NO_OUTPUTS = b'{"outputs":[]}'
FAULTS = {
    "an error": (reply(500, b'{"error":"boom"}'), 500, "version_failed"),
    "an error without words": (reply(502), 500, "version_failed"),
    "a refusal": (reply(400, b'{"error":"no such row"}'), 400, "refused_by_version"),
    "an unknown version": (reply(404, b'{"error":"unknown"}'), 503, "version_unavailable"),
    "an overload": (reply(503, b'{"error":"busy"}'), 503, "version_unavailable"),
    "a crash": (reply(500, b'{"error":"Stub process is not healthy"}'), 503, "version_unavailable"),
    "an error as 200": (reply(200, b'{"error":"boom"}'), 500, "version_failed"),
    "nothing as 200": (reply(200), 500, "version_failed"),
    "no outputs": (reply(200, NO_OUTPUTS, LENGTH % len(NO_OUTPUTS)), 500, "version_failed"),
    "no HTTP": (b"\x00\xff\r\n\r\n", 500, "version_failed"),
    "a closed door": ("close", 503, "serving_unreachable"),
    "silence": ("hang", 504, "deadline_exceeded"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_failed_call_is_not_a_200(fault):
    act, status, code = FAULTS[fault]
    async with shades(shadow=None, timeout_ms=300, breaker=PATIENT) as plane:
        plane.live.always = act
        # Several at once, so that some share a batch.
        answers = await asyncio.gather(*(plane.ask() for _ in range(4)))
    for answer in answers:
        assert (answer.status, answer.json["code"]) == (status, code)
        assert answer.json["error"]
        assert "outputs" not in answer.json


async def test_a_truncated_response_is_not_a_200():
    async with shades(shadow=None, breaker=PATIENT) as plane:
        plane.live.always = "cut"
        answer = await plane.ask()
    assert answer.status in (500, 503)
    assert "outputs" not in answer.json
