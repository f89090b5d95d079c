"""Turns a step's check results into one decision. The order of the rules is the specification.

Only `fail` rolls back and only `pass` passes; no data does neither. A guardrail that fails rolls
back, a signal that fails pauses, a dry run decides nothing. An undecided check extends the bake up
to the step's limit and then pauses the rollout for a person, unless the check says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from apps.rollouts.check_kinds import CheckDocument
from apps.rollouts.durations import format_duration
from apps.rollouts.reasons import Reason, headline_of
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
    # The reason without statistics; of an empty one the reason makes it.
    headline: str = field(default="", compare=False)

    @property
    def why(self) -> Reason:
        return Reason(self.headline or headline_of(self.reason), self.reason)


@dataclass(frozen=True)
class StepClock:
    """When the step may pass, and until when it may be extended, in database time.

    If it lacks nothing but data, it is extended up to `data_limit_at` where that is later.
    """

    due_at: datetime
    limit_at: datetime
    data_limit_at: datetime | None = None


@dataclass(frozen=True)
class JudgedCheck:
    """A check of the step and its result."""

    check: CheckDocument
    result: CheckResult

    @property
    def action(self) -> Action | None:
        """The action of the verdict; None for a dry run or a pass.

        A verdict that is neither pass nor fail takes effect once the bake time is over.
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
        """The rule as the decision log stores it."""
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
    """The facts besides the checks that decide a step; `requests` are the canary's in this step.

    `gate` describes the approval that is still needed, empty if none is. `missing` describes the
    data that each check still needs, by label, and under "requests" what the step needs.
    """

    clock: StepClock
    now: datetime
    requests: int
    requests_min: int
    gate: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)


# An action as a headline says it.
DONE = {Action.ROLL_BACK: "rolled back", Action.PAUSE: "paused"}
# The verdicts that more data may change.
LACKING = {Verdict.INSUFFICIENT_SAMPLE, Verdict.NO_DATA}


def decide_step(judged: Sequence[JudgedCheck], facts: StepFacts) -> Decision:
    failed = [each for each in judged if each.result.verdict is Verdict.FAIL]
    for action in (Action.ROLL_BACK, Action.PAUSE):
        for each in failed:
            if each.action is action:
                return Decision(action, _reason_of(each), _headline(action, each.result))
    if facts.now < facts.clock.due_at:
        left_s = (facts.clock.due_at - facts.now).total_seconds()
        return Decision(Action.HOLD, f"baking, {format_duration(left_s)} left")
    return _decide_due(judged, facts)


def _decide_due(judged: Sequence[JudgedCheck], facts: StepFacts) -> Decision:
    """Decide after the bake time: pass, take an undecided check's action, or extend the bake."""
    undecided = [each for each in judged if each.action is not None]
    for action in (Action.ROLL_BACK, Action.PAUSE):
        for each in undecided:
            if each.action is action:
                is_set = each.result.verdict in each.check.on
                source = " (the plan's action for this verdict)" if is_set else ""
                headline = _headline(action, each.result)
                return Decision(action, f"{_reason_of(each)}{source}", headline)
    reason = _undecided(undecided, facts)
    if reason is None:
        if facts.gate:
            return Decision(Action.HOLD, f"the checks pass; {facts.gate}")
        if not judged:
            return Decision(Action.ADVANCE, "no checks")
        passed = ", ".join(each.check.label for each in judged)
        return Decision(
            Action.ADVANCE, "; ".join(map(_reason_of, judged)), headline_of(f"passed: {passed}")
        )
    limit_at = _limit(undecided, facts.clock)
    if facts.now < limit_at:
        left_s = (limit_at - facts.now).total_seconds()
        return Decision(Action.HOLD, f"extended, {format_duration(left_s)} left: {reason}")
    return Decision(Action.PAUSE, f"no decision within the time limit: {reason}")


def _limit(undecided: Sequence[JudgedCheck], clock: StepClock) -> datetime:
    lacks_data_only = all(each.result.verdict in LACKING for each in undecided)
    if clock.data_limit_at is None or not lacks_data_only:
        return clock.limit_at
    return max(clock.limit_at, clock.data_limit_at)


def _undecided(undecided: Sequence[JudgedCheck], facts: StepFacts) -> str | None:
    if facts.requests < facts.requests_min:
        reason = f"the canary answered {facts.requests} of {facts.requests_min} required requests"
        return _with_missing(reason, "requests", facts)
    for each in undecided:
        reason = f"{each.check.label} is {each.result.verdict}: {each.result.reason}"
        return _with_missing(reason, each.check.label, facts)
    return None


def _with_missing(reason: str, name: str, facts: StepFacts) -> str:
    missing = facts.missing.get(name)
    return f"{reason}; {missing}" if missing else reason


def _headline(action: Action, result: CheckResult) -> str:
    """Return the headline of what a check's verdict leads to."""
    return headline_of(f"{DONE[action]}: {result.headline or headline_of(result.reason)}")


def _reason_of(judged: JudgedCheck) -> str:
    return f"{judged.check.label}: {judged.result.reason}"
