"""A whole instance on real sockets, with a real Redis and an upstream that speaks Triton's HTTP."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import httpx
import pytest
import redis.asyncio as redis

from contract.messages import (
    FIELD,
    STREAM_EXPOSURES,
    STREAM_OUTCOMES,
    STREAM_TELEMETRY,
    decode_batch,
)
from tests.dataplane.control import TOKEN, an_instance, applied
from tests.dataplane.worlds import body, until

ROW = [1.0, 2.0, 3.0, 4.0]
HEALTHY = (
    "/v2/health/live",
    "/v2/health/ready",
    "/v2",
    "/v2/models/sums/ready",
    "/v2/models/sums/versions/2/ready",
    "/v2/models/sums/versions/2/",
)


async def entries(valkey, name):
    async with redis.Redis.from_url(valkey.url) as client:
        return [decode_batch(fields[FIELD]) for _, fields in await client.xrange(name)]


async def windows_of(valkey):
    return [w for b in await entries(valkey, STREAM_TELEMETRY) for w in b.windows]


async def test_it_serves_counts_exposes_and_reports(valkey, tmp_path):
    async with an_instance(valkey, tmp_path) as (instance, client, control, _):
        await applied(instance)
        for unit in ("a", "b", "a"):
            headers = {"x-unit-id": unit}
            answer = await client.post("/v2/models/sums/infer", content=body(ROW), headers=headers)
            assert answer.status_code == 200
        outcome = {"unit_id": "a", "metric": "m", "value": 1}
        assert (await client.post("/outcomes", json=[outcome])).status_code == 202
        await until(lambda: any(r.applied_generation == 7 for r in control.reports))
    windows = [w for b in await entries(valkey, STREAM_TELEMETRY) for w in b.windows]
    exposures = [e for b in await entries(valkey, STREAM_EXPOSURES) for e in b.exposures]
    outcomes = [o for b in await entries(valkey, STREAM_OUTCOMES) for o in b.outcomes]
    assert sum(w.requests for w in windows) == 3
    assert sorted(e.unit for e in exposures) == ["a", "b"]
    assert [o.unit_id for o in outcomes] == ["a"]
    assert control.reports[-1].stopping
    assert control.tokens == {"bearer t"}


async def test_a_leap_second_is_refused_and_the_rest_of_its_batch_is_stored(valkey, tmp_path):
    good = {"unit_id": "a", "metric": "m", "value": 1}
    leap = {**good, "unit_id": "b", "occurred_at": "2016-12-31T23:59:60Z"}
    async with an_instance(valkey, tmp_path) as (instance, client, _, _):
        await applied(instance)
        answer = await client.post("/outcomes", json=[good, leap])
    report = answer.json()
    assert (answer.status_code, report["accepted"]) == (202, 1)
    assert [each["index"] for each in report["refused"]] == [1]
    outcomes = [o for b in await entries(valkey, STREAM_OUTCOMES) for o in b.outcomes]
    assert [o.unit_id for o in outcomes] == ["a"]


async def test_health_metadata_and_metrics(valkey, tmp_path):
    async with an_instance(valkey, tmp_path) as (instance, client, _, _):
        await applied(instance)
        await client.post("/v2/models/sums/infer", content=body(ROW))
        await client.post("/v2/models/invented/infer", content=body(ROW))
        for path in HEALTHY:
            assert (await client.get(path)).status_code == 200, path
        metadata = (await client.get("/v2/models/sums")).json()
        assert metadata["versions"] == ["1", "2"]
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
        page = (await client.get("/metrics", headers=TOKEN)).text
        assert 'model_predictions_total{model_name="sums"' in page
        assert "interlock_table_generation 7" in page
        assert "invented" not in page


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/invented", 404),
        ("GET", "/v2/models/sums/versions/9/ready", 404),
        ("GET", "/v2/models/sums/infer", 405),
        ("POST", "/v2/health/live", 405),
        ("POST", "/outcomes", 400),
        ("HEAD", "/v2/health/live", 200),
    ],
)
async def test_paths_and_methods(valkey, tmp_path, method, path, status):
    async with an_instance(valkey, tmp_path) as (instance, client, _, _):
        await applied(instance)
        answer = await client.request(method, path)
        assert answer.status_code == status
        assert answer.headers.get("allow", "GET") in ("GET", "POST")


async def test_before_its_first_table_it_is_live_but_not_ready(valkey, tmp_path):
    async with an_instance(valkey, tmp_path, b"{}") as (_, client, _, _):
        assert (await client.get("/v2/health/live")).status_code == 200
        ready = await client.get("/v2/health/ready")
        assert (ready.status_code, ready.json()["code"]) == (503, "not_ready")
        answer = await client.post("/v2/models/sums/infer", content=body(ROW))
        assert (answer.status_code, answer.json()["code"]) == (503, "no_routing_table")


async def test_a_stop_lets_requests_in_flight_finish(valkey, tmp_path):
    async with an_instance(valkey, tmp_path) as (instance, client, _, upstream):
        await applied(instance)
        upstream.delay_s = 0.3
        pending = asyncio.create_task(client.post("/v2/models/sums/infer", content=body(ROW)))
        await until(lambda: any(b"/infer" in request for request in upstream.requests))
        stopping = asyncio.create_task(instance.stop())
        await asyncio.sleep(0)
        assert instance.application.not_ready() == "the instance is stopping"
        answer = await pending
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        await stopping


async def test_a_stop_does_not_wait_for_ever(valkey, tmp_path):
    slow = {"timeout_ms": 60_000}
    async with an_instance(valkey, tmp_path, **slow) as (instance, client, _, upstream):
        await applied(instance)
        upstream.script = ["hang"]
        pending = asyncio.create_task(client.post("/v2/models/sums/infer", content=body(ROW)))
        await until(lambda: any(b"/infer" in request for request in upstream.requests))
        began = time.monotonic()
        await instance.stop()
        assert time.monotonic() - began < 3.5
        with pytest.raises(httpx.TransportError):
            await pending
    # The aborted request has its end in the last windows.
    windows = await windows_of(valkey)
    assert sum(w.assigned_requests for w in windows) == 1
    assert sum(w.ends.abandoned for w in windows) == 1


async def test_every_assigned_request_ends_once_whatever_clients_and_servers_do(valkey, tmp_path):
    path = "/v2/models/sums/infer"
    async with an_instance(valkey, tmp_path, timeout_ms=400) as (instance, client, _, upstream):
        await applied(instance)

        async def ask(n):
            headers = {"x-unit-id": f"u{n % 7}"}
            if n % 3 == 0:
                headers["x-interlock-timeout-ms"] = "60"
            with suppress(httpx.TransportError, httpx.TimeoutException):
                timeout_s = 0.03 if n % 5 == 0 else 5
                await client.post(path, content=body(ROW), headers=headers, timeout=timeout_s)

        for act in ("answer", "hang", "close", b"HTTP/1.1 500 X\r\ncontent-length: 2\r\n\r\n{}"):
            upstream.always = act
            await asyncio.gather(*[ask(n) for n in range(30)])
        await asyncio.sleep(0.5)
    windows = await windows_of(valkey)
    assigned = sum(w.assigned_requests for w in windows)
    # On a busy machine some of the 24 clients that give up after 30 ms never reach a version.
    assert 96 <= assigned <= 120
    assert sum(w.ends.total for w in windows) == assigned
    for name in ("answered", "failed", "expired", "abandoned"):
        assert sum(getattr(w.ends, name) for w in windows) > 0, name


async def test_a_hanging_loop_ages_readiness(valkey, tmp_path, monkeypatch):
    async with an_instance(valkey, tmp_path) as (instance, client, _, _):
        await applied(instance)
        monkeypatch.setattr("dataplane.http_routes.LOOP_AGE_MAX_S", -1.0)
        ready = await client.get("/v2/health/ready")
        assert ready.status_code == 503
        assert "loop has not turned" in ready.json()["error"]
