"""Without errors in the baseline, errors of the canary passed: a ratio to zero is undefined."""

from __future__ import annotations

import numpy as np
import pytest

from apps.rollouts.checks import CheckSettings, judge_error_rate
from apps.rollouts.eprocess import BucketCounts
from apps.rollouts.verdicts import Verdict
from bench import decisions_rules as rules


@pytest.mark.parametrize(("canary_errors", "looks"), [(1, 20), (5, 3), (50, 1)])
def test_errors_of_the_canary_alone_roll_it_back(canary_errors: int, looks: int) -> None:
    buckets = [BucketCounts(50, canary_errors, 950, 0)] * looks

    assert judge_error_rate(buckets, CheckSettings()).verdict is Verdict.FAIL


def test_a_ratio_of_rates_is_undefined_where_the_check_decides() -> None:
    rng = np.random.default_rng(45)
    counts = rules.draw(rng, runs=300, shares=np.full(60, 0.05), control=0.0, canary=0.03)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = counts.canary_events.sum(axis=-1) / counts.control_events.sum(axis=-1)

    assert not np.isfinite(ratio).any()
    assert rules.share_of_runs(rules.rolled_back(counts, 0.01)) > 0.99


def test_no_errors_on_either_side_are_proof_of_safety_in_the_end() -> None:
    buckets = [BucketCounts(50, 0, 950, 0)] * 40

    assert judge_error_rate(buckets, CheckSettings()).verdict is Verdict.PASS
