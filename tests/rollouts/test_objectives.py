"""Absolute bounds at 100 %: proof fails, silence never passes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from apps.rollouts.checks import CheckSettings
from apps.rollouts.objectives import (
    Objective,
    judge_error_objective,
    judge_latency_objective,
    judge_objectives,
    judge_shadow_agreement,
)
from apps.rollouts.verdicts import CheckResult, Verdict
from contract.histogram import index_of

DEFAULT = CheckSettings()


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


@pytest.mark.parametrize(
    ("n", "errors", "verdict"),
    [
        (0, 0, Verdict.NO_DATA),
        (40, 0, Verdict.INSUFFICIENT_SAMPLE),
        (2_000, 20, Verdict.PASS),
        (2_000, 50, Verdict.INCONCLUSIVE),
        (2_000, 100, Verdict.FAIL),
    ],
)
def test_an_error_objective_judges_the_canary_alone(n: int, errors: int, verdict: Verdict) -> None:
    result = judge_error_objective(n=n, errors=errors, limit_bp=200, settings=DEFAULT)

    assert (result.check, result.verdict) == ("error-objective", verdict)


@pytest.mark.parametrize(
    ("slow", "verdict"), [(0, Verdict.PASS), (60, Verdict.INCONCLUSIVE), (200, Verdict.FAIL)]
)
def test_a_latency_objective_bounds_a_quantile(slow: int, verdict: Verdict) -> None:
    counts = {index_of(10_000): 1_000 - slow, index_of(80_000): slow}

    result = judge_latency_objective(
        counts, quantile_permille=950, limit_us=50_000, settings=DEFAULT
    )

    assert (result.check, result.verdict) == ("latency-objective", verdict)
    assert result.reason.startswith("p95 within 50 ms: slower than 50 ms ")


def test_the_bucket_that_holds_the_limit_counts_as_within() -> None:
    counts = {index_of(50_000): 1_000}
    given = {"quantile_permille": 990, "limit_us": 50_000, "settings": DEFAULT}

    assert judge_latency_objective(counts, **given).verdict is Verdict.PASS
    assert judge_latency_objective({}, **given).verdict is Verdict.NO_DATA


def agreement(agreement_min_bp: int = 9_900, **counts: int) -> CheckResult:
    none = dict.fromkeys(("compared", "flips", "beyond_tolerance", "errors", "dropped"), 0)
    return judge_shadow_agreement(
        **(none | counts),
        agreement_min_bp=agreement_min_bp,
        compared_min=500,
        settings=DEFAULT,
    )


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [
        ({}, Verdict.NO_DATA),
        ({"dropped": 9_000}, Verdict.NO_DATA),
        ({"compared": 499}, Verdict.INSUFFICIENT_SAMPLE),
        ({"compared": 1_000, "flips": 5, "beyond_tolerance": 8}, Verdict.PASS),
        ({"compared": 1_000, "flips": 16}, Verdict.INCONCLUSIVE),
        ({"compared": 1_000, "beyond_tolerance": 60}, Verdict.FAIL),
        ({"compared": 0, "errors": 30}, Verdict.FAIL),
    ],
)
def test_shadows_get_their_verdicts(counts: dict[str, int], verdict: Verdict) -> None:
    result = agreement(**counts)

    assert result.verdict is verdict
    json.dumps(result.evidence, allow_nan=False)


def test_dropped_copies_change_no_verdict_and_are_told() -> None:
    result = agreement(compared=1_000, flips=2, dropped=77)

    assert result.verdict is Verdict.PASS
    assert "77 copies dropped and not judged" in result.reason


@pytest.mark.parametrize(("flips", "verdict"), [(0, Verdict.PASS), (1, Verdict.FAIL)])
def test_where_all_must_agree_one_difference_is_proof(flips: int, verdict: Verdict) -> None:
    result = agreement(10_000, compared=1_000, flips=flips)

    assert result.verdict is verdict
    json.dumps(result.evidence, allow_nan=False)


def test_more_differences_than_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="11 differing answers of 10"):
        agreement(compared=10, flips=11)


def test_looking_at_a_bound_all_the_time_does_not_condemn_who_keeps_it() -> None:
    rng = np.random.default_rng(31)
    events = np.cumsum(rng.binomial(50, 0.01, (200, 60)), axis=-1)

    fails = [
        any(judge(50 * (k + 1), int(n)).verdict is Verdict.FAIL for k, n in enumerate(run))
        for run in events
    ]

    assert sum(fails) / len(fails) <= 0.02
