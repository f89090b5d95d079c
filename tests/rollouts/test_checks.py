"""Checks as tables: counts in, a verdict and a reason with its numbers out."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from apps.rollouts.check_outcomes import rule
from apps.rollouts.checks import (
    QUANTILE_WEIGHTS,
    CheckSettings,
    judge_error_rate,
    judge_latency,
    latency_measure,
    series_of,
)
from apps.rollouts.eprocess import BucketCounts
from apps.rollouts.verdicts import CheckResult, Verdict
from bench import decisions_rules as decisions

DEFAULT = CheckSettings()


def buckets(count: int, canary_events: int, control_events: int) -> list[BucketCounts]:
    return [BucketCounts(50, canary_events, 950, control_events)] * count


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [
        (buckets(3, 5, 9), Verdict.FAIL),
        (buckets(100, 0, 9), Verdict.PASS),
        (buckets(1, 0, 9), Verdict.INSUFFICIENT_SAMPLE),
        ([], Verdict.NO_DATA),
        ([BucketCounts(0, 0, 900, 9)], Verdict.NO_DATA),
        ([BucketCounts(90, 9, 0, 0)], Verdict.NO_DATA),
        ([BucketCounts(90, 9, 0, 0), BucketCounts(0, 0, 90, 0)], Verdict.NO_DATA),
    ],
)
def test_error_rates_get_their_verdicts(counts: list[BucketCounts], verdict: Verdict) -> None:
    assert judge_error_rate(counts, DEFAULT).verdict is verdict


def test_the_reason_has_the_numbers() -> None:
    result = judge_error_rate(buckets(3, 5, 9), DEFAULT)

    assert result.reason.startswith(
        "error rate 10.0 % on the canary, 0.9 % on stable, margin 1.0 %, "
        "after 150 exposures of the canary: proven"
    )


def small_but_real() -> list[BucketCounts]:
    """0.9 points worse: proven worse than stable, within the margin of one point."""
    return [BucketCounts(900, 16, 900, 8)] * 8


def test_a_proven_regression_within_the_margin_is_for_a_person() -> None:
    result = judge_error_rate(small_but_real(), CheckSettings(alpha_promote=1e-6))

    assert result.verdict is Verdict.INCONCLUSIVE
    assert "proven worse" in result.reason


def test_a_regression_proven_within_the_margin_passes_with_a_note() -> None:
    counts = [BucketCounts(10_000, 150, 190_000, 1_900)] * 40

    result = judge_error_rate(counts, DEFAULT)

    assert result.verdict is Verdict.PASS
    assert "a little worse" in result.reason


def test_the_strict_mode_fails_only_beyond_the_margin() -> None:
    counts = buckets(6, 2, 9)

    assert judge_error_rate(counts, CheckSettings(alpha=0.05)).verdict is Verdict.FAIL
    strict = CheckSettings(alpha=0.05, evidence_mode="beyond_margin")
    assert judge_error_rate(counts, strict).verdict is not Verdict.FAIL


def test_alpha_is_shared_by_the_guardrails() -> None:
    alone, shared = CheckSettings(alpha=0.05), CheckSettings(alpha=0.05, guardrails=4)

    assert alone.log_fail == pytest.approx(math.log(20.0))
    assert shared.log_fail == pytest.approx(math.log(80.0))


def test_too_few_samples_never_pass_but_may_fail() -> None:
    settings = CheckSettings(min_samples=100_000)

    assert judge_error_rate(buckets(100, 0, 9), settings).verdict is Verdict.INSUFFICIENT_SAMPLE
    assert judge_error_rate(buckets(3, 5, 9), settings).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    "wrong",
    [
        {"margin_bp": 0},
        {"p95_margin_bp": 10_000},
        {"p50_margin_bp": 0},
        {"alpha": 0.0},
        {"alpha_promote": 1.0},
        {"guardrails": 0},
        {"min_samples": -1},
        {"evidence_mode": "sometimes"},
    ],
)
def test_invalid_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        CheckSettings(**wrong)  # type: ignore[arg-type]


def test_the_simulated_rule_is_the_products_rule() -> None:
    settings = CheckSettings(alpha=0.05)
    rng = np.random.default_rng(21)
    shares = np.full(12, 0.05)
    counts = decisions.draw(rng, runs=30, shares=shares, control=0.01, canary=0.06)
    hit = decisions.rolled_back(counts, 0.05)
    columns = (counts.canary_n, counts.canary_events, counts.control_n, counts.control_events)

    for run in range(30):
        table = zip(*(column[run].astype(int).tolist() for column in columns), strict=True)
        rows = [BucketCounts(*row) for row in table]
        looks = (judge_error_rate(rows[:now], settings).verdict for now in range(1, 13))
        first = next((now for now, verdict in enumerate(looks) if verdict is Verdict.FAIL), None)
        assert first == (int(hit[run].argmax()) if hit[run].any() else None)


Rows = list[BucketCounts]


def judge(p95: Rows, p99: Rows, p50: Rows | None = None) -> CheckResult:
    return judge_latency(p95, p99, DEFAULT, p50=p50)


def latency(p95: tuple[int, int], p99: tuple[int, int], count: int = 10) -> CheckResult:
    return judge(buckets(count, *p95), buckets(count, *p99))


@pytest.mark.parametrize(
    ("p95", "p99", "count", "verdict"),
    [
        ((10, 47), (1, 9), 10, Verdict.FAIL),
        ((3, 47), (6, 9), 10, Verdict.FAIL),
        ((2, 47), (0, 9), 100, Verdict.PASS),
        ((2, 47), (0, 9), 1, Verdict.INSUFFICIENT_SAMPLE),
        ((0, 0), (0, 0), 0, Verdict.NO_DATA),
    ],
)
def test_latencies_get_their_verdicts(
    p95: tuple[int, int], p99: tuple[int, int], count: int, verdict: Verdict
) -> None:
    assert latency(p95, p99, count).verdict is verdict


def test_a_safe_p95_does_not_pass_an_unsafe_p99() -> None:
    result = judge(buckets(300, 1, 47), buckets(300, 1, 9))

    assert result.verdict is not Verdict.PASS


def test_latency_refuses_intervals_that_do_not_match() -> None:
    with pytest.raises(ValueError, match="same number of intervals"):
        judge(buckets(2, 0, 0), buckets(3, 0, 0))
    with pytest.raises(ValueError, match="same number of intervals"):
        judge(buckets(2, 0, 0), buckets(2, 0, 0), buckets(1, 0, 0))


def test_a_slower_median_alone_fails() -> None:
    tails = (buckets(10, 3, 47), buckets(10, 0, 9))

    assert judge(*tails, buckets(10, 40, 475)).verdict is Verdict.FAIL
    assert judge(*tails).verdict is not Verdict.FAIL


def test_safe_tails_do_not_pass_an_unsafe_median() -> None:
    tails = (buckets(300, 1, 47), buckets(300, 0, 9))

    assert judge(*tails).verdict is Verdict.PASS
    with_median = judge(*tails, buckets(300, 29, 475))
    assert with_median.verdict is not Verdict.PASS


def test_a_reference_without_a_median_is_judged_without_one() -> None:
    counts = (buckets(3, 5, 47), buckets(3, 1, 9))

    assert "p50" not in judge(*counts).evidence
    assert judge(*counts, buckets(3, 25, 475)).evidence["p50"]


def test_the_weights_of_the_quantiles_are_one_stake() -> None:
    assert sum(QUANTILE_WEIGHTS.values()) == pytest.approx(1.0)


def test_the_simulated_latency_rule_is_the_products_rule() -> None:
    settings = CheckSettings(alpha=0.05)
    rows = {500: buckets(4, 36, 475), 950: buckets(4, 6, 47), 990: buckets(4, 3, 9)}
    measures = [latency_measure(q, series_of(counts), settings) for q, counts in rows.items()]

    simulated = rule(measures, 4, settings.levels())

    evidence = judge_latency(rows[950], rows[990], settings, p50=rows[500]).evidence
    assert evidence["log_e_zero"] == pytest.approx(float(simulated.zero.log_e))


def test_a_result_depends_on_its_inputs_alone() -> None:
    stored = json.loads(json.dumps([[50, 3, 950, 9], [40, 0, 960, 12]] * 20))
    rebuilt = [BucketCounts(*row) for row in stored]

    assert judge_error_rate(rebuilt, DEFAULT) == judge_error_rate(list(rebuilt), CheckSettings())


def test_evidence_is_json_without_nan() -> None:
    huge = [BucketCounts(10**7, 10**7, 10**7, 0)] * 3

    for result in (judge_error_rate(huge, DEFAULT), judge(huge, huge)):
        assert json.loads(json.dumps(result.evidence, allow_nan=False)) == result.evidence
