"""The baseline that a canary is compared with: named, counted, queued and cached separately."""

import asyncio

import pytest

from contract.routing import Batching
from dataplane.metrics import Page
from dataplane.metrics_page import _add_queues
from tests.dataplane.cache.worlds import ON, Plane
from tests.dataplane.worlds import body, canary, until

THIRDS = canary(3_000, baseline_bp=3_000)
BATCHES = Batching(max_batch_size=4, max_queue_delay_us=50_000, max_queue_size=64)


def unit_of(variant, split=THIRDS, skip=0):
    """Return a unit of `variant`."""
    units = (f"u{n}" for n in range(10_000) if split.variant_of(f"u{n}") == variant)
    return [next(units) for _ in range(skip + 1)][-1]


def as_unit(variant, skip=0):
    return f"x-unit-id: {unit_of(variant, skip=skip)}\r\n"


@pytest.mark.parametrize(
    ("variant", "version"), [("canary", "2"), ("baseline", "1"), ("stable", "1")]
)
async def test_an_answer_names_the_baseline(variant, version):
    plane = Plane(split=THIRDS)
    answer = await plane.ask(headers=as_unit(variant))
    assert answer.headers["x-interlock-variant"] == variant
    assert answer.headers["x-interlock-version"] == version


async def test_each_variant_is_counted_separately_under_the_rollout():
    plane = Plane(split=THIRDS)
    for n, variant in enumerate(("canary", "baseline", "baseline", "stable", "stable", "stable")):
        await plane.ask(body([n, 0, 0, 0]), as_unit(variant, skip=n))
    windows = plane.windows()
    assert {v: (w.requests, w.units) for v, w in windows.items()} == {
        "canary": (1, 1), "baseline": (2, 2), "stable": (3, 3),
    }  # fmt: skip
    assert {(w.split, w.generation) for w in windows.values()} == {("r1", 1)}


async def test_the_fleets_cache_does_not_answer_for_the_baseline():
    plane = Plane(split=THIRDS)
    states = [
        await plane.state(headers=as_unit(variant))
        for variant in ("stable", "stable", "baseline", "canary", "baseline", "canary")
    ]
    assert states == ["miss", "l1", "miss", "miss", "l1", "l1"]


async def test_the_next_rollout_has_a_baseline_as_cold_as_its_canary():
    plane = Plane(split=THIRDS)
    await plane.ask(headers=as_unit("baseline"))
    plane.apply(2, split=canary(3_001, baseline_bp=3_001))
    assert await plane.state(headers=as_unit("baseline")) == "l1"
    plane.apply(3, split=canary(3_000, baseline_bp=3_000, exposures=True))
    assert await plane.state(headers=as_unit("baseline")) == "l1"
    another = type(THIRDS)(id="r2", salt="s", version="2", weight_bp=100, baseline_bp=3_000)
    plane.apply(4, split=another)
    assert await plane.state(headers=as_unit("baseline")) == "miss"


async def test_a_removed_version_clears_the_baselines_cache():
    plane = Plane(split=THIRDS)
    await plane.ask(headers=as_unit("baseline"))
    before = plane.serving.table.models["sums"].versions
    plane.apply(2, stable="2", versions={"2": before["2"]}, split=None)
    await until(lambda: len(plane.cache.local) == 0)


async def test_the_baseline_has_batches_of_its_own():
    plane = Plane(None, cache=None, split=THIRDS, batching=BATCHES)
    for n, variant in enumerate(("stable", "baseline", "stable", "baseline", "stable")):
        plane.send(body([n, 0, 0, 0]), as_unit(variant, skip=n))
    await asyncio.sleep(0.01)
    assert sorted(plane.triton.batch_sizes()) == [2, 3]


async def test_the_gauges_of_a_version_include_both_queues():
    plane = Plane(None, cache=None, split=THIRDS, batching=BATCHES)
    for variant in ("stable", "baseline"):
        plane.send(headers=as_unit(variant))
    await asyncio.sleep(0.01)
    plane.send(headers=as_unit("baseline"))
    page = Page()
    _add_queues(
        page, [((("version", v),), stats, run) for _, v, stats, run in plane.serving.stats()]
    )
    text = page.text().decode()
    assert 'interlock_batches_in_flight{version="1"} 2' in text
    assert 'interlock_queue_rows{version="1"} 1' in text


async def test_the_breaker_is_the_versions_and_the_queue_outlives_a_table():
    plane = Plane(split=THIRDS)
    fleet, slice_ = [await lane_of(plane, variant) for variant in ("stable", "baseline")]
    assert fleet.runtime.breaker is slice_.runtime.breaker
    assert fleet.runtime.batcher is not slice_.runtime.batcher
    plane.apply(2, split=canary(4_000, baseline_bp=4_000))
    again = await lane_of(plane, "baseline")
    assert again.runtime is slice_.runtime


async def lane_of(plane, variant):
    await plane.ask(headers=as_unit(variant))
    live = plane.serving.model("sums")
    return plane.serving.lane(live, live.router.decide(unit_of(variant)))


async def test_a_rollout_with_exposures_reports_each_unit_once_per_variant():
    plane = Plane(split=canary(3_000, baseline_bp=3_000, exposures=True), cache=None)
    for variant in ("canary", "baseline", "stable", "canary", "baseline", "stable"):
        await plane.ask(headers=as_unit(variant))
    plane.windows()
    assert {(e.experiment, e.unit, e.variant, e.version) for e in plane.exposures} == {
        ("r1", unit_of("canary"), "canary", "2"),
        ("r1", unit_of("baseline"), "baseline", "1"),
        ("r1", unit_of("stable"), "stable", "1"),
    }
    assert len(plane.exposures) == 3


async def test_a_unit_that_crosses_over_when_the_weight_rises_is_exposed_to_both():
    plane = Plane(split=canary(0, exposures=True))
    await plane.ask(headers="x-unit-id: u\r\n")
    plane.apply(2, split=canary(10_000, exposures=True))
    for _ in range(2):
        await plane.ask(headers="x-unit-id: u\r\n")
    plane.windows()
    assert [(e.unit, e.variant) for e in plane.exposures] == [("u", "stable"), ("u", "canary")]


async def test_a_rollout_without_exposures_reports_none():
    plane = Plane(split=THIRDS, cache=ON)
    for variant in ("canary", "baseline", "stable"):
        await plane.ask(headers=as_unit(variant))
    plane.windows()
    assert plane.exposures == []
