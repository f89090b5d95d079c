"""A version at 0 % still got traffic (seldon-core #5181, kserve #2130). Here it gets none."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.routing import ExperimentSplit, Shadow, VariantRoute
from dataplane.router import Router
from tests.dataplane.shadow.shades import shades
from tests.dataplane.worlds import canary, model

salts = st.text(max_size=20)
units = st.none() | st.text(min_size=1, max_size=40)


def router(split):
    return Router("sums", model(split=split), 1)


@given(salts, units, st.integers(0, 9_999))
def test_a_canary_at_zero_gets_no_unit_and_no_draw(salt, unit, drawn):
    split = type(canary(0))(id="r", salt=salt, version="2", weight_bp=0)
    assert router(split).decide(unit, lambda _: drawn).version == "1"


@given(salts, salts, units, st.integers(0, 9_999), st.integers(0, 10_000), st.sampled_from("abc"))
def test_a_variant_at_zero_gets_no_unit_and_no_draw(
    inclusion, variant, unit, drawn, coverage_bp, empty
):
    shares = dict.fromkeys("abc", 5_000) | {empty: 0}
    variants = tuple(
        VariantRoute(name=name, version="2" if name == empty else "1", weight_bp=weight)
        for name, weight in shares.items()
    )
    split = ExperimentSplit(
        id="e", inclusion_salt=inclusion, variant_salt=variant, coverage_bp=coverage_bp,
        variants=variants,
    )  # fmt: skip
    decision = router(split).decide(unit, lambda _: drawn)
    assert (decision.version, decision.variant) != ("2", empty)
    assert decision.version == "1"


@given(salts, units, st.integers(0, 9_999))
def test_an_experiment_with_zero_coverage_includes_no_unit(salt, unit, drawn):
    variants = (VariantRoute(name="a", version="2", weight_bp=10_000),)
    split = ExperimentSplit(
        id="e", inclusion_salt=salt, variant_salt="v", coverage_bp=0, variants=variants
    )
    decision = router(split).decide(unit, lambda _: drawn)
    assert (decision.version, decision.split) == ("1", "")


def test_a_canary_at_zero_gets_none_of_20_000_requests():
    at_zero = router(canary(0))
    versions = {at_zero.decide(None).version for _ in range(10_000)}
    versions |= {at_zero.decide(f"user-{n}").version for n in range(10_000)}
    assert versions == {"1"}


@pytest.mark.parametrize("unit", [None, "u"])
async def test_no_call_for_a_version_at_zero_reaches_its_server(unit):
    shadow = Shadow(id="sh1", salt="sh", version="3", share_bp=0)
    async with shades(split=canary(0), shadow=shadow) as plane:
        for n in range(100):
            assert (await plane.ask(unit=unit and f"{unit}{n}")).status == 200
        await asyncio.sleep(0.02)
        called = {request.split(b"/versions/")[1][:1] for request in plane.live.requests}
        assert called == {b"1"}
        assert plane.shadow.requests == []
        assert {window.version for window in plane.telemetry.drain(1)[0]} == {"1"}


async def test_only_a_request_that_names_it_reaches_a_version_at_zero():
    async with shades(split=canary(0)) as plane:
        await plane.ask(unit="u", version="2")
        (window,), _ = plane.telemetry.drain(1)
        # Counted separately, so that smoke tests do not count in the split's shares.
        assert (window.version, window.variant, window.split) == ("2", "explicit", "")


async def test_a_leak_would_be_reported_with_its_generation():
    async with shades(split=canary(0)) as plane:
        live = plane.serving.model("sums")
        leaked = live.router._canary_sides["canary"]
        lane = plane.serving.lane(live, leaked)
        lane.counter.assign("u")
        lane.counter.answered("u", 100.0)
        (window,), _ = plane.telemetry.drain(1)
        assert (window.version, window.variant, window.split) == ("2", "canary", "r1")
        assert (window.generation, window.assigned, window.units) == (1, 1, 1)
