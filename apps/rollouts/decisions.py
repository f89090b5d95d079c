"""Turns a step's check results into one decision. The order of the rules is the specification.

Only `fail` rolls back and only `pass` passes; no data is neither. What cannot be decided extends
the bake up to the step's limit and then waits for a person.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

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
    """When the step may pass, and until when it may be extended; instants of the database."""

    due_at: datetime
    limit_at: datetime


def decide_step(
    results: Sequence[CheckResult],
    *,
    clock: StepClock,
    now: datetime,
    requests: int,
    requests_min: int,
) -> Decision:
    """Decide what becomes of a step. `requests` are the canary's in this step."""
    for result in results:
        if result.verdict is Verdict.FAIL:
            return Decision(Action.ROLL_BACK, f"{result.check}: {result.reason}")
    if now < clock.due_at:
        left_s = (clock.due_at - now).total_seconds()
        return Decision(Action.HOLD, f"baking, {_span(left_s)} left")
    undecided = _undecided(results, requests, requests_min)
    if undecided is None:
        told = "; ".join(f"{r.check}: {r.reason}" for r in results) or "no checks"
        return Decision(Action.ADVANCE, told)
    if now < clock.limit_at:
        left_s = (clock.limit_at - now).total_seconds()
        return Decision(Action.HOLD, f"extended, {_span(left_s)} left: {undecided}")
    return Decision(Action.PAUSE, f"could not be decided in time: {undecided}")


def _undecided(results: Sequence[CheckResult], requests: int, requests_min: int) -> str | None:
    if requests < requests_min:
        return f"the canary answered {requests} of the {requests_min} requests that are needed"
    for result in results:
        if result.verdict is not Verdict.PASS:
            return f"{result.check} is {result.verdict}: {result.reason}"
    return None


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
