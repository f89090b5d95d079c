"""The plain threshold: its comparison and its false alarms."""

from __future__ import annotations

import numpy as np
import pytest

from apps.rollouts.eprocess import BucketCounts, counts_of
from apps.rollouts.thresholds import beyond_threshold, false_alarm_rate, judge_error_threshold
from apps.rollouts.verdicts import Verdict


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [
        ([], Verdict.NO_DATA),
        ([BucketCounts(900, 9, 0, 0)], Verdict.NO_DATA),
        ([BucketCounts(0, 0, 900, 9)], Verdict.NO_DATA),
        ([BucketCounts(100, 50, 1_900, 19)], Verdict.INSUFFICIENT_SAMPLE),
        ([BucketCounts(1_000, 30, 1_000, 19)], Verdict.FAIL),
        ([BucketCounts(1_000, 29, 1_000, 19)], Verdict.PASS),
        ([BucketCounts(500, 15, 9_500, 0)], Verdict.FAIL),
        ([BucketCounts(200, 4, 1_800, 18), BucketCounts(200, 5, 1_800, 18)], Verdict.FAIL),
    ],
)
def test_observed_rates_are_compared(counts: list[BucketCounts], verdict: Verdict) -> None:
    assert judge_error_threshold(counts, margin_bp=100).verdict is verdict


def test_the_reason_states_that_it_is_not_a_test() -> None:
    result = judge_error_threshold([BucketCounts(1_000, 30, 1_000, 10)], margin_bp=100)

    assert result.reason == (
        "error rate 3.00 % on the canary, 1.00 % on stable, margin 1 %, "
        "after 1,000 exposures of the canary (a comparison, not a test)"
    )


def test_the_simulated_rule_is_the_products_rule() -> None:
    rng = np.random.default_rng(51)
    for _ in range(200):
        canary_n, control_n = (int(n) for n in rng.integers(1, 600, 2))
        events = (int(rng.binomial(n, 0.03)) for n in (canary_n, control_n))
        bucket = BucketCounts(canary_n, next(events), control_n, next(events))
        fails = judge_error_threshold([bucket], margin_bp=100).verdict is Verdict.FAIL
        assert fails == beyond_threshold(counts_of([bucket]), margin=0.01, samples_min=250)[0]


def test_the_threshold_rolls_back_most_healthy_canaries() -> None:
    assert false_alarm_rate(samples_min=1) > 0.85
    assert 0.2 < false_alarm_rate() < 0.6


def test_the_false_alarms_depend_on_the_plan() -> None:
    usual = false_alarm_rate()

    assert false_alarm_rate(margin_bp=1_000) < usual < false_alarm_rate(error_rate=0.05)
    assert false_alarm_rate((10_000,)) == 0.0
    assert false_alarm_rate() == usual
