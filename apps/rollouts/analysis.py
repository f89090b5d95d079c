"""Answers a step's checks from what was seen. Pure: intervals and settings in, results out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from apps.rollouts.checks import (
    ERROR_RATE,
    LATENCY,
    SAMPLE_RATIO,
    CheckSettings,
    SplitInterval,
    judge_error_rate,
    judge_latency,
    judge_sample_ratio,
)
from apps.rollouts.eprocess import BucketCounts
from apps.rollouts.evidence import Interval, LatencyReference
from apps.rollouts.objectives import Objective, judge_objectives
from apps.rollouts.plans import CHECKS, PlanDocument
from apps.rollouts.verdicts import CheckResult, Verdict
from contract.histogram import Counts, count_above, total

__all__ = ["CHECKS", "Question", "answer"]

WHOLE_BP = 10_000


@dataclass(frozen=True)
class Question:
    """All that the checks of one step are answered from."""

    plan: PlanDocument
    step_index: int
    intervals: Sequence[Interval]
    reference: LatencyReference | None
    reference_requests: int
    # Whether both versions were seen lately in this step: old proof is no pass for new silence.
    is_fresh: bool = True

    @property
    def settings(self) -> CheckSettings:
        return CheckSettings(
            margin_bp=self.plan.margin_bp,
            alpha=self.plan.alpha_ppm / 1_000_000,
            guardrails=self.plan.guardrails,
        )

    @property
    def this_step(self) -> list[Interval]:
        return [i for i in self.intervals if i.step_index == self.step_index]

    @property
    def has_control(self) -> bool:
        return self.plan.steps[self.step_index].weight_bp < WHOLE_BP


def answer(question: Question) -> list[CheckResult]:
    """Return the result of each check of the step, in the plan's order."""
    checks = question.plan.steps[question.step_index].checks
    return [_demand_fresh(JUDGES[check](question), question) for check in checks]


def _demand_fresh(result: CheckResult, question: Question) -> CheckResult:
    """Take back a pass that rests on what was seen before this step, or before data dried up."""
    if result.verdict is not Verdict.PASS or question.is_fresh:
        return result
    return CheckResult(
        result.check,
        Verdict.NO_DATA,
        f"nothing was seen lately in this step (before that: {result.reason})",
        result.evidence,
    )


def _error_rate(question: Question) -> CheckResult:
    if question.has_control:
        buckets = [
            BucketCounts(i.canary.n, i.canary.errors, i.control.n, i.control.errors)
            for i in question.intervals
        ]
        return judge_error_rate(buckets, question.settings)
    control_n = sum(i.control.n for i in question.intervals)
    control_errors = sum(i.control.errors for i in question.intervals)
    usual = control_errors / control_n if control_n else 0.0
    bound = usual + question.plan.margin_bp / WHOLE_BP
    objective = Objective(
        "error rate",
        bound,
        sum(i.canary.n for i in question.this_step),
        sum(i.canary.errors for i in question.this_step),
    )
    return _judge_absolute(ERROR_RATE, [objective], question.settings)


def _latency(question: Question) -> CheckResult:
    reference = question.reference
    if reference is None:
        return CheckResult(
            LATENCY,
            Verdict.INSUFFICIENT_SAMPLE,
            f"stable's usual latency is not known yet: {question.reference_requests} of "
            f"{question.plan.reference_requests_min} requests",
            {"reference_requests": question.reference_requests},
        )
    # Only what came after the reference was frozen may be judged by it.
    judged = [i for i in question.intervals if i.started_at >= reference.frozen_at]
    if question.has_control:
        p95, p99 = (
            [_exceedances(i, index) for i in judged] for index in (reference.p95, reference.p99)
        )
        return judge_latency(p95, p99, question.settings)
    mine = [i for i in judged if i.step_index == question.step_index]
    settings = question.settings
    objectives = [
        _slower(mine, "slower than stable's p95", reference.p95, 500 + settings.p95_margin_bp),
        _slower(mine, "than its p99", reference.p99, 100 + settings.p99_margin_bp),
    ]
    return _judge_absolute(LATENCY, objectives, settings)


def _slower(intervals: Sequence[Interval], label: str, index: int, bound_bp: int) -> Objective:
    return Objective(
        label,
        bound_bp / WHOLE_BP,
        sum(total(i.canary.latency) for i in intervals),
        sum(count_above(i.canary.latency, index) for i in intervals),
    )


def _judge_absolute(
    check: str, objectives: Sequence[Objective], settings: CheckSettings
) -> CheckResult:
    return judge_objectives(
        check,
        objectives,
        log_needed=math.log(settings.guardrails / settings.alpha),
        samples_min=settings.min_samples,
    )


def _exceedances(interval: Interval, index: int) -> BucketCounts:
    def side(latency: Counts) -> tuple[int, int]:
        return total(latency), count_above(latency, index)

    return BucketCounts(*side(interval.canary.latency), *side(interval.control.latency))


def _sample_ratio(question: Question) -> CheckResult:
    """Judge the interval of this step that saw the most units.

    A unit counts once in an interval but again in the next one, so intervals are not independent
    draws: few users who come back for an hour would look like an overwhelming sample. New records
    are rare, so looking at each costs little of the error rate.
    """
    weight_bp = question.plan.steps[question.step_index].weight_bp
    fullest = max(question.this_step, key=lambda i: i.canary.n + i.control.n, default=None)
    if fullest is None:
        return judge_sample_ratio([])
    return judge_sample_ratio([SplitInterval(fullest.canary.n, fullest.control.n, weight_bp)])


JUDGES: dict[str, Callable[[Question], CheckResult]] = {
    ERROR_RATE: _error_rate,
    LATENCY: _latency,
    SAMPLE_RATIO: _sample_ratio,
}
