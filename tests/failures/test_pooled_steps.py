"""Counts pooled over steps with different shares roll back a canary after an incident in both."""

from __future__ import annotations

import numpy as np

from apps.rollouts.checks import CheckSettings, judge_error_rate
from apps.rollouts.eprocess import BucketCounts
from apps.rollouts.verdicts import Verdict
from bench import decisions_rules as rules

# 1 % errors at a 5 % share, then an incident with 10 % in both at a 50 % share.
BEFORE = [BucketCounts(50, 1, 950, 9), BucketCounts(50, 0, 950, 10)] * 20
DURING = [BucketCounts(500, 50, 500, 50)] * 20


def test_an_incident_in_both_versions_is_no_difference_between_them() -> None:
    both = rules.incident(np.random.default_rng(43), 500)

    assert rules.share_of_runs(rules.rolled_back(both, 0.05)) <= 0.045
    assert rules.share_of_runs(rules.pooled_z(both, 0.05)) > 0.99


def test_the_check_keeps_the_steps_apart_that_pooling_confuses() -> None:
    buckets = [*BEFORE, *DURING]
    columns = ("canary_n", "canary_events", "control_n", "control_events")
    pooled = BucketCounts(*(sum(getattr(b, name) for b in buckets) for name in columns))

    apart, together = (judge_error_rate(b, CheckSettings()) for b in (buckets, [pooled]))

    assert apart.verdict is not Verdict.FAIL
    assert together.verdict is Verdict.FAIL
