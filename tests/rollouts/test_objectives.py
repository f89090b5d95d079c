"""Absolute bounds: proof fails, missing data never passes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from apps.rollouts.checks import CheckSettings
from apps.rollouts.objectives import (
    Objective,
    Part,
    Proof,
    judge_error_objective,
    judge_latency_objective,
    judge_objectives,
    judge_shadow_agreement,
)
from apps.rollouts.verdicts import CheckResult, Verdict
from contract.histogram import index_of

DEFAULT = CheckSettings()


PROOF = Proof(log_fail=math.log(100), log_pass=math.log(10), samples_min=100)


def of(label: str, bound: float, n: int, events: int) -> Objective:
    return Objective(label, bound, (Part(n, events),))


def judge(n: int, events: int, bound: float = 0.01) -> CheckResult:
    return judge_objectives("error-rate", [of("error rate", bound, n, events)], PROOF)


@pytest.mark.parametrize(
    ("n", "events", "verdict"),
    [
        (0, 0, Verdict.NO_DATA),
        (50, 0, Verdict.INSUFFICIENT_SAMPLE),
        (1_000, 0, Verdict.PASS),
        (1_000, 9, Verdict.INSUFFICIENT_SAMPLE),
        (10_000, 50, Verdict.PASS),
        (1_000, 12, Verdict.INCONCLUSIVE),
        (1_000, 100, Verdict.FAIL),
        (20, 20, Verdict.FAIL),
    ],
)
def test_counts_are_judged_against_the_bound(n: int, events: int, verdict: Verdict) -> None:
    assert judge(n, events).verdict is verdict


def test_the_reason_has_the_numbers() -> None:
    assert "error rate 10.00 %, limit 1.00 %, after 1,000 exposures" in judge(1_000, 100).reason


@pytest.mark.parametrize("bound", [0.995, 1.0, 1.01])
@pytest.mark.parametrize("events", [0, 500, 1_000])
def test_a_bound_near_certainty_is_never_proven_exceeded(bound: float, events: int) -> None:
    assert judge(1_000, events, bound=bound).verdict is not Verdict.FAIL


def test_one_bad_bound_among_good_ones_fails() -> None:
    good, bad = of("p95", 0.075, 2_000, 10), of("p99", 0.02, 2_000, 400)
    result = judge_objectives("latency", [good, bad], PROOF)
    assert result.verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("n", "errors", "verdict"),
    [
        (0, 0, Verdict.NO_DATA),
        (40, 0, Verdict.INSUFFICIENT_SAMPLE),
        (2_000, 20, Verdict.PASS),
        (2_000, 38, Verdict.INSUFFICIENT_SAMPLE),
        (2_000, 50, Verdict.INCONCLUSIVE),
        (2_000, 100, Verdict.FAIL),
    ],
)
def test_an_error_objective_judges_the_canary_alone(n: int, errors: int, verdict: Verdict) -> None:
    # Over ten intervals: what one of them brings is bounded.
    parts = [Part(n // 10, errors // 10 + (i < errors % 10)) for i in range(10)]
    result = judge_error_objective(parts, limit_bp=200, settings=DEFAULT)

    assert (result.check, result.verdict) == ("error-objective", verdict)


@pytest.mark.parametrize(
    ("slow", "verdict"), [(0, Verdict.PASS), (60, Verdict.INCONCLUSIVE), (200, Verdict.FAIL)]
)
def test_a_latency_objective_bounds_a_quantile(slow: int, verdict: Verdict) -> None:
    counts = {index_of(10_000): 250 - slow // 4, index_of(80_000): slow // 4}

    result = judge_latency_objective(
        [counts] * 4, quantile_permille=950, limit_us=50_000, settings=DEFAULT
    )

    assert (result.check, result.verdict) == ("latency-objective", verdict)
    assert result.reason.startswith("answers slower than 50 ms: ")


def test_the_bucket_that_holds_the_limit_counts_as_within() -> None:
    counts = {index_of(50_000): 1_000}
    arguments = {"quantile_permille": 990, "limit_us": 50_000, "settings": DEFAULT}

    assert judge_latency_objective([counts], **arguments).verdict is Verdict.PASS
    assert judge_latency_objective([], **arguments).verdict is Verdict.NO_DATA


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
        ({"compared": 1_000, "flips": 5, "beyond_tolerance": 8}, Verdict.INSUFFICIENT_SAMPLE),
        ({"compared": 10_000, "flips": 50, "beyond_tolerance": 60}, Verdict.PASS),
        ({"compared": 1_000, "flips": 16}, Verdict.INCONCLUSIVE),
        ({"compared": 1_000, "beyond_tolerance": 60}, Verdict.FAIL),
        ({"compared": 0, "errors": 30}, Verdict.FAIL),
    ],
)
def test_shadows_get_their_verdicts(counts: dict[str, int], verdict: Verdict) -> None:
    result = agreement(**counts)

    assert result.verdict is verdict
    json.dumps(result.evidence, allow_nan=False)


def test_dropped_copies_change_no_verdict_and_are_counted() -> None:
    result = agreement(compared=2_000, flips=2, dropped=77)

    assert result.verdict is Verdict.PASS
    assert "77 copies were dropped and not compared" in result.reason


@pytest.mark.parametrize(
    ("flips", "verdict"), [(0, Verdict.INSUFFICIENT_SAMPLE), (1, Verdict.FAIL)]
)
def test_at_full_agreement_one_difference_is_proof_and_none_is_not(
    flips: int, verdict: Verdict
) -> None:
    result = agreement(10_000, compared=1_000, flips=flips)

    assert result.verdict is verdict
    json.dumps(result.evidence, allow_nan=False)


def test_more_differences_than_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="11 differing answers of 10"):
        agreement(compared=10, flips=11)


def ever(verdict: Verdict, rate: float, *, looks: int = 60) -> float:
    """Return the share of runs in which a bound of 1 % ever gets the verdict at many looks."""
    rng = np.random.default_rng(31)
    events = rng.binomial(50, rate, (200, looks))
    runs = 0
    for run in events:
        parts = [Part(50, int(count)) for count in run]
        looked = (Objective("error rate", 0.01, tuple(parts[: k + 1])) for k in range(looks))
        runs += any(judge_objectives("x", [one], PROOF).verdict is verdict for one in looked)
    return runs / len(events)


def test_constant_looks_do_not_fail_a_version_within_its_bound() -> None:
    assert ever(Verdict.FAIL, 0.01) <= 0.02


def test_a_version_just_above_its_bound_hardly_ever_passes() -> None:
    assert ever(Verdict.PASS, 0.011) <= 0.10


def test_a_version_well_within_its_bound_passes() -> None:
    assert ever(Verdict.PASS, 0.002) >= 0.95


def test_one_interval_of_errors_is_no_proof_and_three_are() -> None:
    calm, lost = Part(50, 0), Part(50, 50)
    for bad, is_proven in ((1, False), (3, True)):
        objective = Objective("error rate", 0.01, (calm, *[lost] * bad))
        proof = Proof.of(DEFAULT, samples_min=100, steps=1)
        verdict = judge_objectives("error-objective", [objective], proof).verdict
        assert (verdict is Verdict.FAIL) is is_proven


def test_the_steps_with_a_check_share_its_level() -> None:
    one, five = (Proof.of(DEFAULT, samples_min=0, steps=steps).log_fail for steps in (1, 5))
    assert five - one == pytest.approx(math.log(5))


def test_rows_of_one_request_are_one_draw() -> None:
    alone = agreement(compared=1_600, flips=40)
    together = agreement(compared=1_600, flips=40, copies=50)

    assert alone.verdict is Verdict.FAIL
    assert together.verdict is Verdict.INCONCLUSIVE


def test_unanswered_units_count_against_an_error_objective() -> None:
    parts, hanging = [Part(100, 0)] * 10, [Part(130, 30)] * 10
    answered = judge_error_objective(parts, [Part(130, 0)] * 10, limit_bp=200, settings=DEFAULT)
    hung = judge_error_objective(parts, hanging, limit_bp=200, settings=DEFAULT)
    nobody = judge_error_objective([], [Part(30, 30)] * 10, limit_bp=200, settings=DEFAULT)

    assert answered.verdict is Verdict.PASS
    assert hung.verdict is Verdict.FAIL
    assert "unanswered 23.08 %, limit 2.00 %" in hung.reason
    assert nobody.verdict is Verdict.FAIL
