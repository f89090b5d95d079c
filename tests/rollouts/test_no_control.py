"""A step without a control: the past never fails it, and missing data never passes it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from apps.rollouts.analysis import StepInputs, judge_checks
from apps.rollouts.check_kinds import CheckDocument
from apps.rollouts.decisions import Action, Decision, JudgedCheck, StepClock, StepFacts, decide_step
from apps.rollouts.evidence import Arm, Interval, LatencyReference
from apps.rollouts.no_control import notices_of
from apps.rollouts.plan_templates import TEMPLATES
from apps.rollouts.plans import PlanDocument, StepDocument
from apps.rollouts.verdicts import CheckResult, Verdict

START = datetime(2026, 1, 1, tzinfo=UTC)
REFERENCE = LatencyReference(p50=80, p95=90, p99=100, n=5_000, frozen_at=START)
BOUNDS: tuple[str | CheckDocument, ...] = (
    CheckDocument(check="error-objective", settings={"limit_bp": 500}),
    CheckDocument(check="latency-objective", settings={"limit_us": 20_000}),
)
COMPARED: tuple[str | CheckDocument, ...] = ("error-rate", "latency", "error-threshold")


def plan(*checks: str | CheckDocument, **step: Any) -> PlanDocument:
    last = StepDocument(weight_bp=10_000, checks=checks, **step)
    return PlanDocument(name="p", steps=(StepDocument(weight_bp=500, checks=checks), last))


def intervals(*, errors: int = 0, slow: int = 0, n: int = 1_000) -> list[Interval]:
    """Return a healthy first step, and a last one with these counts of `n` in each interval."""
    healthy = Arm(50, 0, 50, {70: 50}, 50), Arm(950, 0, 950, {70: 950}, 950)
    whole = Arm(n, errors, n, {70: n - slow, 120: slow}, n)
    times = [START + timedelta(seconds=10 * i) for i in range(40)]
    first = [Interval(0, at, *healthy) for at in times]
    return [*first, *(Interval(1, at + timedelta(hours=1), whole) for at in times if n)]


def ask(document: PlanDocument, **traffic: int) -> dict[str, CheckResult]:
    inputs = StepInputs(document, 1, intervals(**traffic), REFERENCE, 5_000)
    return {result.check: result for result in judge_checks(inputs)}


def decide(document: PlanDocument, **traffic: int) -> Decision:
    results = ask(document, **traffic)
    answers = [JudgedCheck(c, results[c.label]) for c in document.steps[1].check_documents]
    due = StepClock(START, START + timedelta(hours=1))
    return decide_step(answers, StepFacts(due, START, requests=1, requests_min=0))


@pytest.mark.parametrize("traffic", [{}, {"errors": 30}, {"errors": 900}, {"slow": 1_000}])
def test_worse_than_in_the_morning_is_no_proof(traffic: dict[str, int]) -> None:
    results = ask(plan(*COMPARED), **traffic)
    assert {result.verdict for result in results.values()} == {Verdict.INCONCLUSIVE}
    assert "stable gets no traffic to compare with" in results["error-rate"].reason
    assert "the step has no latency-objective: a person decides" in results["latency"].reason


def test_a_step_without_deciders_pauses_once_the_bake_is_over() -> None:
    decision = decide(plan(*COMPARED, "sample-ratio"))
    assert decision.action is Action.PAUSE
    assert "a person decides" in decision.reason
    assert "the plan's action" not in decision.reason


def test_absolute_objectives_decide_in_place_of_a_comparison() -> None:
    healthy = decide(plan(*COMPARED, *BOUNDS))
    assert healthy.action is Action.ADVANCE
    assert "decided by error-objective" in healthy.reason
    assert decide(plan(*COMPARED, *BOUNDS), errors=150).action is Action.ROLL_BACK
    assert decide(plan(*COMPARED, *BOUNDS), slow=500).action is Action.ROLL_BACK


def test_a_dry_run_objective_decides_nothing() -> None:
    recorded = CheckDocument(check="error-objective", mode="dry-run", settings={"limit_bp": 500})
    assert decide(plan("error-rate", recorded)).action is Action.PAUSE


def test_a_gates_person_decides() -> None:
    results = ask(plan("error-rate", gate="person", gate_role="admin"))
    assert results["error-rate"].verdict is Verdict.PASS
    assert "decided by the person who opens the gate (admin)" in results["error-rate"].reason


def test_no_traffic_is_no_data_also_with_deciders() -> None:
    results = ask(plan("error-rate", *BOUNDS), n=0)
    assert results["error-rate"].verdict is Verdict.NO_DATA


def test_a_plan_has_notices_for_steps_without_a_control() -> None:
    (notice,) = notices_of(plan("error-rate", "latency"))
    assert notice.startswith("Step 2 gives the target all traffic")
    assert "error-rate and latency cannot decide" in notice
    assert "add error-objective and latency-objective" in notice
    (left, undecided) = notices_of(plan("error-rate", BOUNDS[0], "latency"))
    assert "error-objective decides in place of error-rate" in left
    assert "latency cannot decide" in undecided
    assert "passes immediately" in notices_of(plan(bake_s=0))[0]


def test_templates_that_compare_keep_a_control_to_the_end() -> None:
    for template in TEMPLATES:
        steps = template.document.as_followed().steps
        compares = [
            s for s in steps if {"error-rate", "latency"} & {c.check for c in s.check_documents}
        ]
        assert all(step.weight_bp <= 9_900 for step in compares), template.document.name
        assert not compares or steps[-1].is_final_bake
