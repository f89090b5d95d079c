"""Checks of a step judged from intervals: each only from the data that applies to it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from apps.rollouts.analysis import StepInputs, judge_checks
from apps.rollouts.check_kinds import DEFAULT_CHECKS, ERROR_OBJECTIVE, CheckDocument
from apps.rollouts.evidence import Arm, Interval, LatencyReference, SliceCounts
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.verdicts import CheckResult, Verdict
from contract.messages import ClusterCounts

START = datetime(2026, 1, 1, tzinfo=UTC)
REFERENCE = LatencyReference(p95=90, p99=100, n=5_000, frozen_at=START)
FAST, SLOW = 80, 120


def arm(n: int, *, errors: int = 0, slow: int = 0) -> Arm:
    latency = {FAST: n - slow, SLOW: slow}
    return Arm(n=n, errors=errors, requests=n, latency=latency, assigned=n)


def series(canary: Arm, control: Arm, *, step: int = 0, count: int = 40) -> list[Interval]:
    return [
        Interval(step, START + timedelta(seconds=10 * i), canary, control) for i in range(count)
    ]


def step_inputs(
    intervals: list[Interval], *, step: int = 0, reference: LatencyReference | None = REFERENCE
) -> StepInputs:
    steps = (StepDocument(weight_bp=500), StepDocument(weight_bp=10_000))
    return StepInputs(PlanDocument(name="p", steps=steps), step, intervals, reference, 5_000)


def ask(inputs: StepInputs) -> dict[str, CheckResult]:
    return {result.check: result for result in judge_checks(inputs)}


def verdicts(inputs: StepInputs) -> list[Verdict]:
    return [result.verdict for result in judge_checks(inputs)]


HEALTHY = series(arm(50), arm(950))


def test_a_healthy_canary_passes_every_check_in_the_plans_order() -> None:
    results = judge_checks(step_inputs(HEALTHY))
    assert [result.check for result in results] == list(DEFAULT_CHECKS)
    assert {result.verdict for result in results} == {Verdict.PASS}


def test_no_intervals_are_no_data_for_every_check() -> None:
    assert set(verdicts(step_inputs([]))) == {Verdict.NO_DATA}


def test_old_proof_does_not_pass_without_new_data() -> None:
    results = judge_checks(replace(step_inputs(HEALTHY), is_fresh=False))
    assert {result.verdict for result in results} == {Verdict.NO_DATA}
    assert "no recent data in this step" in results[0].reason


def test_a_failure_stands_without_fresh_data() -> None:
    inputs = step_inputs(series(arm(50, errors=15), arm(950)))
    assert ask(replace(inputs, is_fresh=False))["error-rate"].verdict is Verdict.FAIL


def test_a_slow_canary_fails_latency_only() -> None:
    results = ask(step_inputs(series(arm(50, slow=25), arm(950, slow=9))))
    assert results["latency"].verdict is Verdict.FAIL
    assert results["error-rate"].verdict is Verdict.PASS


def test_without_stables_usual_latency_the_sample_is_insufficient() -> None:
    result = ask(step_inputs(HEALTHY, reference=None))["latency"]
    assert result.verdict is Verdict.INSUFFICIENT_SAMPLE
    assert "5000 of 5000" in result.reason


def test_data_before_the_reference_is_not_judged() -> None:
    late = replace(REFERENCE, frozen_at=START + timedelta(hours=1))
    slow = series(arm(50, slow=50), arm(950))
    assert ask(step_inputs(slow, reference=late))["latency"].verdict is Verdict.NO_DATA


def test_a_share_other_than_the_configured_one_does_not_pass() -> None:
    result = ask(step_inputs(series(arm(300), arm(700))))["sample-ratio"]
    assert result.verdict is not Verdict.PASS


def test_an_error_objective_applies_beside_a_control() -> None:
    check = CheckDocument(check=ERROR_OBJECTIVE, settings={"limit_bp": 100})
    steps = (StepDocument(weight_bp=500, checks=(check,)),)
    bad = series(arm(50, errors=10), arm(950, errors=190))
    inputs = StepInputs(PlanDocument(name="p", steps=steps), 0, bad, REFERENCE, 5_000)
    (result,) = judge_checks(inputs)
    assert result.verdict is Verdict.FAIL
    assert "no control" not in result.reason
    assert "error rate 20.00 %, limit 1.00 %" in result.reason


def sliced(n: int, *, errors: int = 0, unanswered: int = 0) -> Arm:
    """An arm whose counts are spread evenly over five slices."""
    parts = [SliceCounts(n // 5, errors // 5, n // 5, unanswered // 5) for _ in range(5)]
    one = arm(n, errors=errors)
    return replace(one, unanswered=unanswered, slices=parts)


def test_a_canary_that_leaves_requests_unanswered_fails_that_check_only() -> None:
    results = ask(step_inputs(series(sliced(50, unanswered=15), sliced(950, unanswered=10))))
    assert results["unanswered"].verdict is Verdict.FAIL
    assert results["error-rate"].verdict is Verdict.PASS
    assert (
        "unanswered 30.0 % on the canary, 1.1 % on stable, margin 1.0 %"
        in results["unanswered"].reason
    )


def test_at_full_traffic_a_person_decides_on_unanswered_requests() -> None:
    whole = series(sliced(1_000, unanswered=100), Arm(), step=1)
    result = ask(step_inputs([*HEALTHY, *whole], step=1))["unanswered"]
    assert result.verdict is Verdict.INCONCLUSIVE
    assert not result.is_decidable
    assert "4,000 of 40,000 exposures were left without an answer" in result.reason


def test_the_reason_names_the_start_of_the_evidence() -> None:
    bad = series(sliced(50, errors=5), sliced(950, errors=10), count=20)
    later = [replace(each, started_at=each.started_at + timedelta(hours=1)) for each in bad]
    good = series(sliced(50), sliced(950, errors=10), count=360)
    result = ask(step_inputs([*good, *later]))["error-rate"]
    assert result.verdict is Verdict.FAIL
    assert "10.0 % on the canary, 1.1 % on stable, margin 1.0 %" in result.reason
    assert "since 01:00:00 (20 intervals)" in result.reason


def test_requests_without_a_unit_are_counted_by_client() -> None:
    control = sliced(960, errors=40)
    control.clusters = {
        number: ClusterCounts(0, 30, 0, 30, 20 if number < 2 else 0) for number in range(32)
    }
    result = ask(step_inputs(series(sliced(50), control)))["error-rate"]
    assert "(counted by client)" in result.reason
    assert result.evidence["dispersion"] > 5.0  # type: ignore[operator]
