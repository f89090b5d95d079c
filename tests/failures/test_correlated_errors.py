"""One failing user's retries counted as many errors and rolled back. Here each unit counts once."""

from __future__ import annotations

import numpy as np

from apps.rollouts.checks import CheckSettings, judge_error_rate
from apps.rollouts.eprocess import BucketCounts
from apps.rollouts.verdicts import Verdict
from bench import decisions_rules as rules


def test_users_who_fail_five_times_do_not_roll_back_a_healthy_canary() -> None:
    requests, units = rules.correlated_errors(np.random.default_rng(44), 500)

    assert rules.share_of_runs(rules.rolled_back(units, 0.05)) <= 0.035
    # Stable's own variation shows some of the correlation, not all.
    assert rules.share_of_runs(rules.rolled_back(requests, 0.05)) > 0.08


def test_one_unit_that_fails_over_and_over_is_one_event() -> None:
    as_requests = [BucketCounts(49 + 30, 30, 950, 9)]
    as_units = [BucketCounts(50, 1, 950, 9)]

    assert judge_error_rate(as_requests, CheckSettings()).verdict is Verdict.FAIL
    assert judge_error_rate(as_units, CheckSettings()).verdict is Verdict.INSUFFICIENT_SAMPLE


def test_one_unit_that_fails_in_every_interval_of_a_busy_canary_is_tolerated() -> None:
    buckets = [BucketCounts(500, 1, 9_500, 0)] * 60

    assert judge_error_rate(buckets, CheckSettings()).verdict is not Verdict.FAIL
