"""Rollout and experiment shared a hash, so samples were skewed (Unleash go-sdk #145).

Chi-square tests of independence on fixed units, which give the same result in every run.
"""

from __future__ import annotations

from itertools import combinations

import pytest
from scipy.stats import chi2_contingency, chisquare

from contract.bucketing import bucket
from contract.routing import CanarySplit, ExperimentSplit, VariantRoute
from dataplane.router import Router
from tests.dataplane.worlds import model

USERS = [f"user-{n}" for n in range(20_000)]
SALTS = {
    "rollout": "rollout:7",
    "inclusion": "experiment:7:inclusion",
    "variant": "experiment:7:variant",
    "shadow": "shadow:7",
    "next rollout": "rollout:8",
}
# Low enough for the number of pairs; a shared hash gives 0.
LEVEL = 1e-4


def tenths(salt):
    return [bucket(salt, user) // 1_000 for user in USERS]


def counts(first, second):
    table = [[0] * (max(second) + 1) for _ in range(max(first) + 1)]
    for one, other in zip(first, second, strict=True):
        table[one][other] += 1
    return table


@pytest.mark.parametrize(("one", "other"), list(combinations(SALTS, 2)))
def test_buckets_of_two_salts_are_independent(one, other):
    table = counts(tenths(SALTS[one]), tenths(SALTS[other]))
    assert chi2_contingency(table).pvalue > LEVEL


@pytest.mark.parametrize("name", SALTS)
def test_buckets_of_a_salt_are_even(name):
    tenth = tenths(SALTS[name])
    assert chisquare([tenth.count(n) for n in range(10)]).pvalue > LEVEL


def test_the_test_detects_a_shared_hash():
    shared = tenths("rollout:7")
    assert chi2_contingency(counts(shared, shared)).pvalue == 0.0


def test_the_users_of_a_canary_are_spread_over_the_variants_as_all_others_are():
    split = CanarySplit(id="r", salt=SALTS["rollout"], version="2", weight_bp=1_000)
    canary = Router("sums", model(split=split), 1)
    variants = tuple(
        VariantRoute(name=name, version=version, weight_bp=5_000)
        for name, version in (("control", "1"), ("treatment", "2"))
    )
    experiment = Router("other", model(split=ExperimentSplit(
        id="e", inclusion_salt=SALTS["inclusion"], variant_salt=SALTS["variant"],
        coverage_bp=5_000, variants=variants,
    )), 1)  # fmt: skip
    places = {"stable": 0, "control": 1, "treatment": 2}
    sides = [int(canary.decide(user).variant == "canary") for user in USERS]
    groups = [places[experiment.decide(user).variant] for user in USERS]
    assert chi2_contingency(counts(sides, groups)).pvalue > LEVEL


def test_inclusion_and_variant_are_independent():
    included = [int(bucket(SALTS["inclusion"], user) < 1_000) for user in USERS]
    halves = [int(bucket(SALTS["variant"], user) < 5_000) for user in USERS]
    assert chi2_contingency(counts(included, halves)).pvalue > LEVEL
