"""One decision from a step's results: the rules in their order."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from apps.rollouts.check_kinds import ERROR_RATE, CheckDocument
from apps.rollouts.decisions import (
    Action,
    Decision,
    JudgedCheck,
    StepClock,
    StepFacts,
    decide_step,
)
from apps.rollouts.verdicts import CheckResult, Verdict

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
BAKING = StepClock(NOW + MINUTE, NOW + 3 * MINUTE)
DUE = StepClock(NOW, NOW + 3 * MINUTE)
OVER = StepClock(NOW - 3 * MINUTE, NOW)
HELD = sorted(set(Verdict) - {Verdict.PASS, Verdict.FAIL})


def decide(
    clock: StepClock,
    *verdicts: str,
    requests: int = 10,
    least: int = 0,
    gate: str = "",
    **check: Any,
) -> Decision:
    answers = [
        JudgedCheck(
            CheckDocument(check=ERROR_RATE, name=f"check-{v}", **check),
            CheckResult(f"check-{v}", Verdict(v), f"it is {v}", {}),
        )
        for v in verdicts
    ]
    return decide_step(answers, StepFacts(clock, NOW, requests, least, gate))


@pytest.mark.parametrize("clock", [BAKING, DUE, OVER])
def test_a_failed_check_rolls_back_whatever_the_clock_says(clock: StepClock) -> None:
    decision = decide(clock, "pass", "no-data", "fail")
    assert decision == Decision(Action.ROLL_BACK, "check-fail: it is fail")


def test_a_pass_before_the_bake_is_over_holds() -> None:
    assert decide(BAKING, "pass") == Decision(Action.HOLD, "baking, 60 s left")


def test_only_passes_at_the_due_time_advance() -> None:
    assert decide(DUE, "pass", "pass").action is Action.ADVANCE


@pytest.mark.parametrize("verdict", HELD)
def test_other_verdicts_extend_and_then_wait_for_a_person(verdict: str) -> None:
    assert decide(DUE, "pass", verdict).action is Action.HOLD
    assert decide(OVER, "pass", verdict).action is Action.PAUSE


def test_too_few_requests_hold_a_step_with_their_numbers() -> None:
    decision = decide(DUE, "pass", requests=9, least=10)
    assert decision.action is Action.HOLD
    assert "9 of 10 required requests" in decision.reason


def test_a_step_without_checks_only_bakes() -> None:
    assert decide(DUE) == Decision(Action.ADVANCE, "no checks")


@pytest.mark.parametrize("clock", [BAKING, DUE, OVER])
def test_a_signal_that_fails_pauses(clock: StepClock) -> None:
    decision = decide(clock, "fail", mode="signal")
    assert decision == Decision(Action.PAUSE, "check-fail: it is fail")


@pytest.mark.parametrize("verdict", sorted(Verdict))
def test_a_dry_run_decides_nothing(verdict: str) -> None:
    assert decide(DUE, verdict, mode="dry-run").action is Action.ADVANCE


@pytest.mark.parametrize("verdict", HELD)
@pytest.mark.parametrize("action", ["hold", "pause"])
def test_an_undecided_verdict_has_the_action_of_the_check_when_due(
    verdict: str, action: str
) -> None:
    assert decide(BAKING, verdict, on={verdict: action}).action is Action.HOLD
    assert decide(DUE, verdict, on={verdict: action}).action is Action(action)


def test_an_inconclusive_check_may_roll_back_if_configured() -> None:
    assert decide(DUE, "inconclusive", on={"inconclusive": "roll back"}).action is Action.ROLL_BACK


def test_a_gate_holds_a_passing_step_but_not_a_failing_one() -> None:
    assert decide(OVER, "pass", gate="waits for anna").reason == "the checks pass; waits for anna"
    assert decide(OVER, "fail", gate="waits for anna").action is Action.ROLL_BACK


WAITS = StepClock(NOW - 3 * MINUTE, NOW, NOW + timedelta(days=3))


@pytest.mark.parametrize("verdict", ["no-data", "insufficient-sample"])
def test_a_step_that_lacks_data_waits_for_it(verdict: str) -> None:
    decision = decide(WAITS, "pass", verdict)
    assert decision.action is Action.HOLD
    assert decision.reason.startswith("extended, 3 days left")
    assert decide(WAITS, "pass", requests=1, least=2).action is Action.HOLD


@pytest.mark.parametrize("verdict", ["inconclusive", "provider-error"])
def test_a_verdict_that_data_cannot_change_does_not_wait(verdict: str) -> None:
    assert decide(WAITS, verdict, "no-data").action is Action.PAUSE


def test_a_hold_names_the_missing_data() -> None:
    few = JudgedCheck(
        CheckDocument(check=ERROR_RATE), CheckResult("", Verdict.INSUFFICIENT_SAMPLE, "few", {})
    )
    facts = StepFacts(DUE, NOW, 10, 0, missing={ERROR_RATE: "412 of 1,250"})
    assert decide_step([few], facts).reason.endswith("insufficient-sample: few; 412 of 1,250")


def test_an_undecidable_check_pauses_once_the_bake_is_over() -> None:
    open_for_ever = CheckResult("", Verdict.INCONCLUSIVE, "no control", {}, is_decidable=False)
    facts = StepFacts(DUE, NOW, 10, 0)
    decision = decide_step([JudgedCheck(CheckDocument(check=ERROR_RATE), open_for_ever)], facts)
    assert decision == Decision(Action.PAUSE, "error-rate: no control")
