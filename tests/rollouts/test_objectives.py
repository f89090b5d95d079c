"""Absolute bounds at 100 %: proof fails, silence never passes."""

from __future__ import annotations

import math

import pytest

from apps.rollouts.objectives import Objective, judge_objectives
from apps.rollouts.verdicts import CheckResult, Verdict


def judge(n: int, events: int, bound: float = 0.01) -> CheckResult:
    objective = Objective("error rate", bound, n, events)
    return judge_objectives("error-rate", [objective], log_needed=math.log(100), samples_min=100)


@pytest.mark.parametrize(
    ("n", "events", "verdict"),
    [
        (0, 0, Verdict.NO_DATA),
        (50, 0, Verdict.INSUFFICIENT_SAMPLE),
        (1_000, 5, Verdict.PASS),
        (1_000, 12, Verdict.INCONCLUSIVE),
        (1_000, 100, Verdict.FAIL),
        (20, 20, Verdict.FAIL),
    ],
)
def test_counts_are_judged_against_the_bound(n: int, events: int, verdict: Verdict) -> None:
    assert judge(n, events).verdict is verdict


def test_the_reason_has_the_numbers() -> None:
    assert "error rate 10.00%, at most 1.00%, n=1000" in judge(1_000, 100).reason


@pytest.mark.parametrize("bound", [0.995, 1.0, 1.01])
@pytest.mark.parametrize("events", [0, 500, 1_000])
def test_a_bound_near_certainty_is_never_proven_broken(bound: float, events: int) -> None:
    assert judge(1_000, events, bound=bound).verdict is not Verdict.FAIL


def test_one_bad_bound_among_good_ones_fails() -> None:
    good, bad = Objective("p95", 0.075, 2_000, 10), Objective("p99", 0.02, 2_000, 400)
    found = judge_objectives("latency", [good, bad], log_needed=math.log(200), samples_min=100)
    assert found.verdict is Verdict.FAIL
