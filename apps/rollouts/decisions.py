"""Turns a step's check results into one decision. The order of the rules is the specification.

Only `fail` rolls back and only `pass` passes; no data is neither. A guardrail that fails rolls
back, a signal that fails pauses, a dry run decides nothing. What cannot be decided extends the bake
up to the step's limit and then waits for a person, unless the check says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from apps.rollouts.check_kinds import CheckDocument
from apps.rollouts.durations import span
from apps.rollouts.verdicts import CheckResult, Verdict


class Action(StrEnum):
    HOLD = "hold"
    ADVANCE = "advance"
    PAUSE = "pause"
    ROLL_BACK = "roll back"


@dataclass(frozen=True)
class Decision:
    action: Action
    reason: str


@dataclass(frozen=True)
class StepClock:
    """When the step may pass, and until when it may be extended; instants of the database.

    Where data are lacking and nothing else, it is extended up to `data_limit_at` if that is later.
    """

    due_at: datetime
    limit_at: datetime
    data_limit_at: datetime | None = None


@dataclass(frozen=True)
class Answered:
    """A check of the step and what it answered."""

    check: CheckDocument
    result: CheckResult

    @property
    def action(self) -> Action | None:
        """What the verdict leads to; None where the check has no say, or has passed.

        A verdict that is neither pass nor fail leads there only once the bake time is over.
        """
        if self.check.effective_mode == "dry-run" or self.result.verdict is Verdict.PASS:
            return None
        if self.result.verdict is Verdict.FAIL:
            is_guardrail = self.check.effective_mode == "guardrail"
            return Action.ROLL_BACK if is_guardrail else Action.PAUSE
        usual = Action.HOLD if self.result.is_decidable else Action.PAUSE
        return Action(self.check.on.get(self.result.verdict, usual))

    @property
    def rule(self) -> str:
        """The rule in words, as the decision log keeps it."""
        mode, verdict = self.check.effective_mode, self.result.verdict
        if mode == "dry-run":
            return "dry run: recorded only"
        if verdict is Verdict.PASS:
            return "pass: lets the step pass"
        if verdict is Verdict.FAIL:
            return f"{mode} failed: {self.action}"
        return f"{verdict}: {self.action} when the bake time is over"


@dataclass(frozen=True)
class StepFacts:
    """What else decides a step. `requests` are the canary's in this step.

    `gate` says in words who still has to let it pass; empty when nobody has. `missing` says what
    data a check still needs, by the check's label, and "requests" what the step does.
    """

    clock: StepClock
    now: datetime
    requests: int
    requests_min: int
    gate: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)


# What more data may change.
LACKING = {Verdict.INSUFFICIENT_SAMPLE, Verdict.NO_DATA}


def decide_step(answers: Sequence[Answered], facts: StepFacts) -> Decision:
    """Decide what becomes of a step."""
    failed = [a for a in answers if a.result.verdict is Verdict.FAIL]
    for action in (Action.ROLL_BACK, Action.PAUSE):
        for answered in failed:
            if answered.action is action:
                return Decision(action, _tell(answered))
    if facts.now < facts.clock.due_at:
        left_s = (facts.clock.due_at - facts.now).total_seconds()
        return Decision(Action.HOLD, f"baking, {span(left_s)} left")
    return _decide_due(answers, facts)


def _decide_due(answers: Sequence[Answered], facts: StepFacts) -> Decision:
    """The bake time is over: pass, do what an undecided check asks for, or go on for a while."""
    undecided = [a for a in answers if a.action is not None]
    for action in (Action.ROLL_BACK, Action.PAUSE):
        for answered in undecided:
            if answered.action is action:
                is_set = answered.result.verdict in answered.check.on
                why = " (as the plan says of this verdict)" if is_set else ""
                return Decision(action, f"{_tell(answered)}{why}")
    reason = _undecided(undecided, facts)
    if reason is None:
        if facts.gate:
            return Decision(Action.HOLD, f"the checks pass; {facts.gate}")
        told = "; ".join(f"{a.check.label}: {a.result.reason}" for a in answers) or "no checks"
        return Decision(Action.ADVANCE, told)
    limit_at = _limit(undecided, facts.clock)
    if facts.now < limit_at:
        left_s = (limit_at - facts.now).total_seconds()
        return Decision(Action.HOLD, f"extended, {span(left_s)} left: {reason}")
    return Decision(Action.PAUSE, f"could not be decided in time: {reason}")


def _limit(undecided: Sequence[Answered], clock: StepClock) -> datetime:
    lacks_data_only = all(answered.result.verdict in LACKING for answered in undecided)
    if clock.data_limit_at is None or not lacks_data_only:
        return clock.limit_at
    return max(clock.limit_at, clock.data_limit_at)


def _undecided(undecided: Sequence[Answered], facts: StepFacts) -> str | None:
    if facts.requests < facts.requests_min:
        told = (
            f"the canary answered {facts.requests} of the {facts.requests_min} requests that "
            "are needed"
        )
        return _with_missing(told, "requests", facts)
    for answered in undecided:
        result = answered.result
        told = f"{answered.check.label} is {result.verdict}: {result.reason}"
        return _with_missing(told, answered.check.label, facts)
    return None


def _with_missing(told: str, name: str, facts: StepFacts) -> str:
    missing = facts.missing.get(name)
    return f"{told}; {missing}" if missing else told


def _tell(answered: Answered) -> str:
    return f"{answered.check.label}: {answered.result.reason}"
