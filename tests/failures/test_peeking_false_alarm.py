"""A z-test at each look rolls back healthy versions; the e-process is valid at every look."""

from __future__ import annotations

import numpy as np

from bench import decisions_rules as rules


def test_two_hundred_looks_at_a_healthy_canary_do_not_roll_it_back() -> None:
    rng = np.random.default_rng(41)
    healthy = rules.draw(rng, runs=300, shares=rules.five_steps(), control=0.01, canary=0.01)

    assert rules.share_of_runs(rules.rolled_back(healthy, 0.01)) <= 0.01
    assert rules.share_of_runs(rules.peeking_z(healthy, 0.05)) > 0.35


def test_looks_at_latency_do_not_roll_back_a_canary_as_fast_as_stable() -> None:
    hit, _ = rules.latency_rolled_back(np.random.default_rng(42), 250, rules.as_before, looks=100)

    assert rules.share_of_runs(hit) <= 0.05
