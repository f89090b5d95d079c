from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.routing import ExperimentSplit, VariantRoute
from dataplane.errors import Refusal
from dataplane.router import Router
from tests.dataplane.worlds import EXPERIMENT, canary, model

units = st.text(min_size=1, max_size=30)


def router(generation=3, **changes):
    return Router("sums", model(**changes), generation)


def share(chosen, variant):
    return sum(decision.variant == variant for decision in chosen) / len(chosen)


def test_without_a_split_stable_answers():
    decision = router().decide("u")
    assert (decision.version, decision.variant, decision.split) == ("1", "stable", "")
    assert decision.generation == 3


def test_without_a_stable_version_no_version_answers():
    with pytest.raises(Refusal) as caught:
        router(stable=None).decide("u")
    assert (caught.value.status, caught.value.code) == (503, "no_stable_version")


@given(units)
def test_a_canary_of_weight_0_gets_no_unit(unit):
    assert router(split=canary(0)).decide(unit).version == "1"


def test_a_canary_of_weight_0_gets_no_draw():
    nought = router(split=canary(0))
    assert all(nought.decide(None).version == "1" for _ in range(20_000))


@given(units, st.integers(0, 10_000), st.integers(0, 10_000))
def test_raising_the_weight_keeps_earlier_units_in(unit, one, other):
    low, high = sorted((one, other))
    if router(split=canary(low)).decide(unit).variant == "canary":
        assert router(split=canary(high)).decide(unit).variant == "canary"


@given(units)
def test_a_canary_of_full_weight_gets_every_unit(unit):
    assert router(split=canary(10_000)).decide(unit).version == "2"


def test_a_request_without_a_unit_is_drawn():
    five_percent = router(split=canary(500))
    draw = Random(1).randrange
    chosen = [five_percent.decide(None, draw) for _ in range(20_000)]
    assert share(chosen, "canary") == pytest.approx(0.05, abs=0.006)


def test_a_request_without_a_unit_is_drawn_for_the_baseline_too():
    split = router(split=canary(500, baseline_bp=500))
    draw = Random(3).randrange
    chosen = [split.decide(None, draw) for _ in range(20_000)]
    assert share(chosen, "baseline") == pytest.approx(0.05, abs=0.006)
    assert share(chosen, "canary") == pytest.approx(0.05, abs=0.006)


@given(units, st.integers(0, 5_000))
def test_the_baseline_is_stable_under_another_name(unit, baseline_bp):
    split = canary(5_000, baseline_bp=baseline_bp)
    decision = router(split=split).decide(unit)
    assert decision.variant == split.variant_of(unit)
    assert (decision.version, decision.split) == (
        "2" if decision.variant == "canary" else "1",
        "r1",
    )


@pytest.mark.parametrize("exposures", [False, True])
def test_a_canary_has_exposures_if_enabled(exposures):
    split = router(split=canary(4_000, baseline_bp=4_000, exposures=exposures))
    met = {(d.variant, d.exposures) for d in (split.decide(f"u{i}") for i in range(200))}
    assert met == {(variant, exposures) for variant in ("canary", "baseline", "stable")}


def test_both_sides_of_a_canary_carry_its_id():
    half = router(split=canary(5_000))
    splits = {half.decide(f"u{i}").split for i in range(100)}
    assert splits == {"r1"}


@given(units)
def test_an_experiment_decides_as_the_contract_does(unit):
    variant = EXPERIMENT.variant_of(unit)
    decision = router(split=EXPERIMENT).decide(unit)
    assert variant is not None
    assert (decision.variant, decision.version) == (variant.name, variant.version)
    assert decision.exposures


def test_a_unit_outside_the_experiment_is_not_counted_in_it():
    nobody = ExperimentSplit(
        id="e1", inclusion_salt="i", variant_salt="v", coverage_bp=0, variants=EXPERIMENT.variants
    )
    decision = router(split=nobody).decide("u")
    assert (decision.variant, decision.split, decision.exposures) == ("stable", "", False)


def test_draws_for_an_experiment_keep_to_the_weights():
    variants = (
        VariantRoute(name="a", version="1", weight_bp=0),
        VariantRoute(name="b", version="2", weight_bp=10_000),
    )
    split = ExperimentSplit(
        id="e", inclusion_salt="i", variant_salt="v", coverage_bp=5_000, variants=variants
    )
    draw = Random(2).randrange
    chosen = [router(split=split).decide(None, draw) for _ in range(5_000)]
    assert share(chosen, "a") == 0
    assert share(chosen, "b") == pytest.approx(0.5, abs=0.03)


def test_an_explicit_version_bypasses_the_split():
    decision = router(split=canary(10_000)).explicit("1")
    assert (decision.version, decision.variant, decision.split) == ("1", "explicit", "")


def test_an_unknown_explicit_version_is_not_found():
    with pytest.raises(Refusal) as caught:
        router().explicit("9")
    assert caught.value.status == 404


def test_the_same_request_gets_the_same_decision_object():
    half = router(split=canary(5_000))
    assert half.decide("u") is half.decide("u")
    assert half.explicit("2") is half.explicit("2")


def test_a_pinned_model_is_served_as_if_it_had_no_split():
    router = Router("sums", model(split=canary(10_000)), 3, pinned=True)
    assert {router.decide(f"u{n}") for n in range(50)} == {router.stable}
    assert (router.stable.variant, router.stable.split) == ("stable", "")
    assert router.explicit("2").version == "2"
