"""Whether the control plane accepts an instance, and what it withholds while it is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from dataplane.instance_identity import Standing, Withheld, read_home

REPORT = "/report"


def answer(status, message="", path=REPORT):
    body = {"error": {"code": "refused", "message": message}} if message else {}
    return httpx.Response(status, json=body, request=httpx.Request("POST", f"http://c{path}"))


@pytest.mark.parametrize("status", [401, 403, 409])
async def test_a_refused_instance_sends_nothing_until_it_is_accepted(status):
    standing = Standing(REPORT, is_new=False)
    standing.check()
    await standing.note(answer(status, "another one is live"))
    with pytest.raises(Withheld, match=r"refuses this instance: another one is live; .* on disk"):
        standing.check()
    await standing.note(answer(204))
    standing.check()


async def test_a_new_state_directory_reports_first():
    standing = Standing(REPORT, is_new=True)
    for other in (answer(503), answer(200, path="/routing-table")):
        await standing.note(other)
        with pytest.raises(Withheld, match="no report"):
            standing.check()
    await standing.note(answer(204))
    standing.check()


@pytest.mark.parametrize("status", [404, 500, 503])
async def test_a_failing_control_plane_refuses_no_instance(status):
    standing = Standing(REPORT, is_new=False)
    await standing.note(answer(status))
    standing.check()


async def test_a_refusal_with_an_unknown_body_is_a_refusal():
    standing = Standing(REPORT, is_new=False)
    request = httpx.Request("POST", f"http://c{REPORT}")
    await standing.note(httpx.Response(403, content=b"<html>", request=request))
    assert "status 403" in standing.obstacle


def test_a_state_directory_keeps_its_name(tmp_path):
    home, is_new = read_home(tmp_path)
    assert len(home) == 16
    assert is_new
    assert read_home(tmp_path) == (home, False)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_workers_that_start_at_once_agree(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda _: read_home(tmp_path)[0], range(32)))
    assert len(set(names)) == 1
