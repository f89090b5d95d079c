"""More load on a slow model than it can handle, from clients without a pause, on a real Triton.

Before batches were sized by the cost of rows, 16 clients of a model of 100 ms per row got 4 answers
in 10 s, and 64 clients of one of 20 ms per row got 83 in 8 s: the rest was late, or met the open
breaker of the only version.
"""

from __future__ import annotations

import asyncio
import sys
from time import monotonic

import httpx
import orjson
import pytest

from bench import sleeper
from bench.overload import SERVED, table
from bench.overload_load import Job
from bench.testbed import data_plane
from embedded.stack import running

# The share of the model's capacity; other processes take their part (`./run bench overload`).
SHARE_MIN = 0.6
OPERATOR = "an-operators-token-for-this-test-alone"


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slow")
    sleeper.write(folder / "state" / "triton" / "repository", SERVED)
    with running(folder / "state", {"redis", "triton"}) as stack:
        stored = table(stack.ports["triton_http"])
        settings = {"INTERLOCK_WORKERS": "1", "INTERLOCK_OPERATOR_TOKEN": OPERATOR}
        with data_plane(folder / "plane", stored, stack.redis_url, **settings) as plane:
            yield plane.port


async def overload(port, clients, cost_ms, seconds):
    """Run many clients; return their results, those of single clients, and the metrics."""
    job = Job(port, "/v2/models/sleeper/infer", clients, 2.0, seconds, 1.0, [cost_ms])
    load = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.overload_load",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    answering = asyncio.create_task(load.communicate(job.encode()))
    others = []
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            while not answering.done():
                began_at = monotonic()
                plain = {"model": "sleeper", "data": [[cost_ms]]}
                answer = await client.post("/predict", json=plain)
                others.append((answer.status_code, answer.headers, monotonic() - began_at))
                await asyncio.sleep(0.1)
            page = await client.get("/metrics", headers={"authorization": f"Bearer {OPERATOR}"})
            metrics = page.text
    finally:
        output, _ = await answering
    return orjson.loads(output), others, metrics


@pytest.mark.parametrize(("clients", "cost_ms", "seconds"), [(16, 100, 10), (64, 20, 8)])
async def test_it_answers_up_to_its_capacity_and_refuses_the_rest_at_once(
    slow, clients, cost_ms, seconds
):
    tally, others, metrics = await overload(slow, clients, float(cost_ms), float(seconds))
    assert tally["in_time"] >= SHARE_MIN * seconds * 1000 / cost_ms, tally["statuses"]
    assert set(tally["statuses"]) <= {"200", "503", "504"}
    # Late answers are the exception.
    assert tally["statuses"].get("504", 0) <= 0.2 * tally["statuses"]["200"]
    trips = [
        line for line in metrics.splitlines() if line.startswith("interlock_breaker_trips_total{")
    ]
    assert trips
    assert all(line.endswith(" 0") for line in trips), trips
    assert others
    for status, headers, took_s in others:
        assert status in (200, 503, 504)
        assert (status == 503) == ("retry-after" in headers)
        assert took_s < 2.0
