"""Which requests take part in an experiment, and which messages about them are sent."""

import asyncio

import msgspec
import pytest

from contract.messages import SKETCH_K
from contract.routing import Batching, ExperimentSplit
from dataplane.router import Router
from dataplane.telemetry import MEASURED_MAX, Telemetry
from dataplane.triton import Fault, TritonError
from dataplane.unit_sketch import Sketch, Sketches
from tests.dataplane.test_predict import BOOM, INFER, REFUSED, ROW, Plane, by_version
from tests.dataplane.wire import Wire, request
from tests.dataplane.worlds import EXPERIMENT, body, model, stopped_clock


def split(**changes) -> ExperimentSplit:
    return msgspec.structs.replace(EXPERIMENT, **changes)


def unit(name: str, more: str = "") -> str:
    return f"x-unit-id: {name}\r\n{more}"


async def exposed(plane: Plane):
    plane.windows()
    return plane.exposures


@pytest.mark.parametrize(
    ("headers", "takes_part"),
    [
        ("x-country: ch\r\n", True),
        ("X-Country: li\r\n", True),
        ("x-country: CH\r\n", False),
        ("x-country: de\r\n", False),
        ("", False),
    ],
)
async def test_only_requests_with_a_targeted_header_take_part(headers, takes_part):
    plane = Plane(split=split(headers={"x-country": ("ch", "li")}))

    await plane.ask(headers=unit("u1", headers))

    assert bool(await exposed(plane)) is takes_part


async def test_untargeted_requests_get_stable_outside_the_split():
    plane = Plane(split=split(headers={"x-country": ("ch",)}, coverage_bp=10_000))

    await plane.ask(headers=unit("u1"))

    assert {(w.version, w.variant, w.split) for w in plane.windows().values()} == {
        ("1", "stable", "")
    }


def test_only_targeted_tenants_take_part():
    router = Router("sums", model(split=split(tenants=("shop", "app"))), 1)

    assert router.targeted
    assert router.targets("shop", {})
    assert not router.targets("", {})
    assert not router.targets("other", {})


def test_all_conditions_must_hold():
    router = Router("sums", model(split=split(tenants=("shop",), headers={"a": ("1",)})), 1)

    assert router.targets("shop", {b"a": b"1"})
    assert not router.targets("shop", {b"a": b"2"})
    assert not router.targets("app", {b"a": b"1"})


def test_without_conditions_every_request_takes_part():
    assert not Router("sums", model(split=EXPERIMENT), 1).targeted


def test_held_out_units_are_the_same_in_every_experiment_and_get_stable():
    held = {"holdout_salt": "holdout:sums", "holdout_bp": 2_000}
    first = Router("sums", model(split=split(**held)), 1)
    other = Router("sums", model(split=split(id="e2", variant_salt="else", **held)), 2)

    for i in range(500):
        one, two = first.decide(f"u{i}"), other.decide(f"u{i}")
        assert (one.variant == "holdout") == (two.variant == "holdout")
        if one.variant == "holdout":
            assert one.version == "1"
    share = sum(first.decide(f"u{i}").variant == "holdout" for i in range(5_000)) / 5_000
    assert 0.17 < share < 0.23


async def test_held_out_units_are_exposed_as_such():
    plane = Plane(split=split(holdout_salt="h", holdout_bp=10_000))

    await plane.ask(headers=unit("u1"))

    (exposure,) = await exposed(plane)
    assert (exposure.variant, exposure.version) == ("holdout", "1")


async def test_an_exposure_carries_the_dimension_headers():
    plane = Plane(split=split(dimensions=("x-country", "x-plan")))

    await plane.ask(headers=unit("u1", f"x-country: {'c' * 150}\r\nx-secret: no\r\n"))

    (exposure,) = await exposed(plane)
    assert exposure.attributes == {"x-country": "c" * 100}


async def test_units_are_measured_if_the_split_is_measured():
    plane = Plane(split=split(measured=True))

    for _ in range(3):
        await plane.ask(headers=unit("u1"))
    await plane.ask()

    (measured,) = plane.telemetry.drain_measured()
    assert (measured.experiment, measured.unit, measured.requests) == ("e1", "u1", 3)
    assert (measured.errors, measured.cache_hits) == (0, 0)
    assert measured.latency_us > 0
    assert plane.telemetry.drain_measured() == []


async def test_a_request_that_fell_back_is_an_error_of_its_variant():
    failing = by_version(v2=BOOM)
    plane = Plane(failing, split=split(measured=True))
    for i in range(20):
        await plane.ask(headers=unit(f"u{i}"))

    measured = {"control": 0, "treatment": 0}
    for each in plane.telemetry.drain_measured():
        measured[each.variant] += each.errors
    assert measured["control"] == 0
    assert measured["treatment"] > 0


async def test_a_unit_is_exposed_when_assigned_however_its_request_ends():
    plane = Plane(None, split=split(measured=True))
    wire = Wire(answer=plane.application)
    wire.feed(request(INFER, body(ROW), unit("u1")))
    (exposure,) = await exposed(plane)
    assert exposure.unit == "u1"
    wire.connection.connection_lost(None)
    assert await exposed(plane) == []
    assert [(m.requests, m.errors) for m in plane.telemetry.drain_measured()] == [(1, 1)]


@pytest.mark.parametrize("why", ["expired", "shed"])
async def test_a_request_that_its_version_left_unanswered_is_an_error_of_its_variant(why):
    one = split(measured=True, holdout_salt="h", holdout_bp=10_000)
    plane = Plane(None, split=one, batching=Batching(max_queue_size=64 * (why == "expired")))
    wire = Wire(answer=plane.application)
    wire.feed(request(INFER, body(ROW), unit("u1", "x-interlock-timeout-ms: 300\r\n")))
    if why == "expired":
        await asyncio.sleep(0.01)
        plane.triton.finish(0, TritonError(Fault.TIMEOUT, "no answer before the deadline"))
    assert wire.statuses == [504 if why == "expired" else 503]
    (measured,) = plane.telemetry.drain_measured()
    assert (measured.requests, measured.errors, measured.latency_us) == (1, 1, 0)
    assert len(await exposed(plane)) == 1


async def test_a_request_that_no_version_accepts_is_not_an_error():
    plane = Plane(by_version(v1=REFUSED, v2=REFUSED), split=split(measured=True))
    assert (await plane.ask(headers=unit("u1"))).status == 400
    assert plane.telemetry.drain_measured() == []


async def test_nothing_is_measured_without_requests():
    plane = Plane(split=EXPERIMENT)

    await plane.ask(headers=unit("u1"))

    assert plane.telemetry.drain_measured() == []


def test_measurements_are_limited_and_dropped_ones_are_counted():
    telemetry = Telemetry(stopped_clock())
    for i in range(MEASURED_MAX + 2):
        telemetry.measure(("e", f"u{i}", "a"), 0, 0, 1)

    assert len(telemetry.drain_measured()) == MEASURED_MAX
    assert telemetry.dropped["measurements"] == 2


def test_a_sketch_keeps_the_smallest_distinct_hashes():
    sketch = Sketch()
    for _ in range(2):
        for i in range(5_000):
            sketch.add(f"u{i}")

    smallest = sketch.take()
    assert len(smallest) == SKETCH_K
    assert list(smallest) == sorted(set(smallest))
    assert (SKETCH_K - 1) * 2**64 / smallest[-1] == pytest.approx(5_000, rel=0.15)


def test_sketches_are_reported_once_a_minute_and_after_each_hour():
    now = [3_600.0 * 100]
    sketches = Sketches(lambda: now[0])
    sketches.of("sums").add("u1")
    assert sketches.drain() == []

    now[0] += 61
    (first,) = sketches.drain()
    assert (first.model, first.hour, len(first.smallest)) == ("sums", 100, 1)
    assert sketches.drain() == []

    sketches.of("sums").add("u2")
    now[0] += 3_600
    (last,) = sketches.drain()
    assert (last.hour, len(last.smallest)) == (100, 2)
    sketches.of("sums").add("u1")
    (new,) = sketches.drain(is_last=True)
    assert (new.hour, len(new.smallest)) == (101, 1)
