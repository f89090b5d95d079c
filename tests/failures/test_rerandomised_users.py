"""Users changed sides between steps or after a restart (flagger #1532, argo-rollouts #2726)."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from contract.routing import CanarySplit, ExperimentSplit, VariantRoute, decode, encode
from dataplane.router import Router
from tests.dataplane.worlds import EXPERIMENT, canary, model, table

STEPS_BP = (0, 500, 1_000, 2_500, 5_000, 10_000)
units = st.text(min_size=1, max_size=40)
USERS = [f"user-{n}" for n in range(2_000)]


def router(split, generation=1):
    return Router("sums", model(split=split), generation)


def on_canary(split, generation=1):
    decide = router(split, generation).decide
    return {user for user in USERS if decide(user).variant == "canary"}


@given(st.text(max_size=20), units, st.lists(st.integers(0, 10_000), min_size=2, max_size=8))
def test_a_unit_of_the_canary_stays_in_it_in_all_further_steps(salt, unit, weights):
    splits = [
        CanarySplit(id="r", salt=salt, version="2", weight_bp=weight_bp)
        for weight_bp in sorted(weights)
    ]
    inside = [router(split).decide(unit).variant == "canary" for split in splits]
    assert inside == sorted(inside)


def test_the_first_five_percent_are_among_the_ten_and_all_that_follow():
    groups = [on_canary(canary(weight_bp)) for weight_bp in STEPS_BP]
    for earlier, later in pairwise(groups):
        assert earlier < later
    assert [len(group) for group in (groups[0], groups[-1])] == [0, len(USERS)]
    assert 60 <= len(groups[1]) <= 140


def test_a_second_try_after_a_rollback_selects_the_same_users():
    assert on_canary(canary(500), 1) == on_canary(canary(500), 9)
    assert on_canary(canary(500)) == on_canary(canary(5_000)) & on_canary(canary(500))


def test_an_encoded_and_decoded_table_makes_the_same_decisions():
    for split in (canary(2_500), EXPERIMENT):
        before = table(model(split=split))
        after = decode(encode(before))
        first = Router("sums", before.models["sums"], 1)
        second = Router("sums", after.models["sums"], 1)
        for user in USERS[:300]:
            assert first.decide(user).variant == second.decide(user).variant


def test_another_process_makes_the_same_decisions():
    program = (
        "from tests.failures.test_rerandomised_users import *;"
        "print(*sorted(on_canary(canary(500))))"
    )
    # Python's own hash differs between processes, so it cannot be used for buckets.
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {" ".join(sorted(on_canary(canary(500)))) + "\n"}


@given(units, st.integers(0, 10_000), st.integers(0, 10_000))
def test_more_coverage_moves_no_unit_between_variants(unit, one, other):
    def variant(coverage_bp):
        variants = tuple(
            VariantRoute(name=name, version="1", weight_bp=2_500) for name in ("a", "b", "c", "d")
        )
        split = ExperimentSplit(
            id="e", inclusion_salt="i", variant_salt="v", coverage_bp=coverage_bp,
            variants=variants,
        )  # fmt: skip
        return router(split).decide(unit).variant

    low, high = sorted((one, other))
    assert variant(low) in ("stable", variant(high))
