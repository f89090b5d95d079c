"""Answers a step's checks from what was seen. Pure: intervals and observations in, results out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta

from apps.rollouts import check_kinds as kinds
from apps.rollouts.check_kinds import CheckDocument
from apps.rollouts.checks import (
    CheckSettings,
    Frame,
    judge_error_rate,
    judge_latency,
    judge_unanswered,
)
from apps.rollouts.dispersion import History
from apps.rollouts.eprocess import BucketCounts
from apps.rollouts.evidence import GRACE, Interval, LatencyReference
from apps.rollouts.external_checks import OBSERVED
from apps.rollouts.interval_series import (
    ERRORS,
    UNANSWERED,
    Histograms,
    by_cluster,
    by_instance,
    has_slices,
    is_by_client,
    series_of_latencies,
    series_of_rate,
)
from apps.rollouts.latency_baseline import reference_to_json, tell_reference
from apps.rollouts.no_control import deciders_of, judge_without_control
from apps.rollouts.objectives import Part, judge_error_objective, judge_latency_objective
from apps.rollouts.percentiles import percentile_differences
from apps.rollouts.plans import WHOLE_BP, PlanDocument
from apps.rollouts.sample_ratio import judge_step
from apps.rollouts.thresholds import judge_error_threshold
from apps.rollouts.verdicts import JSON, CheckResult, Verdict

# What an observer brought for a check; `problem` says in words why it brought nothing.
Observation = Mapping[str, JSON]


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
    # By the check's label: what is not in the intervals.
    observations: Mapping[str, Observation] = field(default_factory=dict)
    # How stable's errors spread over time before the rollout, where that is known.
    before: History | None = None
    # How long a request may take, seconds.
    timeout_s: float = 0.0

    @property
    def settled(self) -> list[Interval]:
        """The intervals all of whose requests have ended: younger ones may yet turn out worse."""
        if not self.intervals:
            return []
        until = self.intervals[-1].started_at + GRACE - timedelta(seconds=self.timeout_s)
        return [each for each in self.intervals if each.started_at <= until]

    @property
    def settings(self) -> CheckSettings:
        return CheckSettings(
            margin_bp=self.plan.margin_bp,
            alpha=self.plan.alpha_ppm / 1_000_000,
            guardrails=self.plan.guardrails,
            evidence_mode=self.plan.evidence_mode,
        )

    @property
    def weight_bp(self) -> int:
        return self.plan.steps[self.step_index].weight_bp

    @property
    def this_step(self) -> list[Interval]:
        return [i for i in self.intervals if i.step_index == self.step_index]

    @property
    def has_control(self) -> bool:
        return self.weight_bp < WHOLE_BP


def answer(question: Question) -> list[CheckResult]:
    """Return the result of each check of the step, in the plan's order."""
    checks = question.plan.steps[question.step_index].questions
    return [_answer_one(question, check) for check in checks]


def _answer_one(question: Question, check: CheckDocument) -> CheckResult:
    observation = question.observations.get(check.label, {})
    if problem := observation.get("problem"):
        result = CheckResult(check.label, Verdict.PROVIDER_ERROR, str(problem), {})
    else:
        result = replace(JUDGES[check.check](question, check), check=check.label)
    return _demand_fresh(result, question) if check.check in kinds.OF_TRAFFIC else result


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


def _error_rate(question: Question, _: CheckDocument) -> CheckResult:
    if not question.has_control:
        return _without_control(question, kinds.ERROR_RATE)
    series = series_of_rate(question.intervals, ERRORS, question.before)
    return judge_error_rate(series, question.settings, _frame(question.intervals, ERRORS))


def _unanswered(question: Question, _: CheckDocument) -> CheckResult:
    if not question.has_control:
        return _without_control(question, kinds.UNANSWERED)
    result = _judge_unanswered(question, question.intervals)
    settled = question.settled
    if result.verdict is not Verdict.PASS or len(settled) == len(question.intervals):
        return result
    if not any(each.canary.assigned for each in settled if each.step_index == question.step_index):
        reason = f"requests of this step may still be under way (so far: {result.reason})"
        return CheckResult(result.check, Verdict.INSUFFICIENT_SAMPLE, reason, result.evidence)
    # Who is still waiting has not been left without an answer yet: that is no proof of safety.
    earlier = _judge_unanswered(question, settled)
    return result if earlier.verdict is Verdict.PASS else earlier


def _judge_unanswered(question: Question, intervals: Sequence[Interval]) -> CheckResult:
    frame = _frame(intervals, UNANSWERED)
    if not is_by_client(intervals):
        # Who waits for an answer no longer than a moment, or never, chooses whether it comes. One
        # whose unit is the canary's must not condemn it.
        frame = replace(
            frame,
            clusters=lambda start: [by_cluster(each, UNANSWERED) for each in intervals[start:]],
        )
    return judge_unanswered(series_of_rate(intervals, UNANSWERED), question.settings, frame)


def _without_control(question: Question, check: str) -> CheckResult:
    """At 100 % nobody is left on stable: what was usual before proves nothing about now."""
    mine = [each.canary for each in question.this_step]
    n, errors = UNANSWERED if check == kinds.UNANSWERED else ERRORS
    step = question.plan.steps[question.step_index]
    return judge_without_control(
        check,
        n=sum(getattr(arm, n) for arm in mine),
        errors=sum(getattr(arm, errors) for arm in mine),
        deciders=deciders_of(step, check),
    )


def _frame(intervals: Sequence[Interval], names: tuple[str, str] | None = None) -> Frame:
    return Frame(
        started_at=[each.started_at for each in intervals],
        counted=" (counted by client)" if is_by_client(intervals) else "",
        loud=has_slices(intervals),
        instances=lambda start: [
            by_instance(each, names) for each in intervals[start:] if names is not None
        ],
    )


def _error_buckets(intervals: Sequence[Interval]) -> list[BucketCounts]:
    return [
        BucketCounts(i.canary.n, i.canary.errors, i.control.n, i.control.errors) for i in intervals
    ]


def _error_objective(question: Question, check: CheckDocument) -> CheckResult:
    return judge_error_objective(
        [Part(i.canary.n, i.canary.errors) for i in question.this_step],
        [Part(i.canary.assigned, i.canary.unanswered) for i in question.this_step],
        limit_bp=check.setting("limit_bp"),
        settings=question.settings,
        steps=question.plan.steps_that_ask(check.label),
    )


def _error_threshold(question: Question, check: CheckDocument) -> CheckResult:
    if not question.has_control:
        return _without_control(question, kinds.ERROR_THRESHOLD)
    return judge_error_threshold(
        _error_buckets(question.this_step),
        margin_bp=check.setting("margin_bp"),
        samples_min=check.setting("samples_min"),
    )


def _latency_objective(question: Question, check: CheckDocument) -> CheckResult:
    return judge_latency_objective(
        [i.canary.latency for i in question.this_step],
        quantile_permille=check.setting("quantile_permille"),
        limit_us=check.setting("limit_us"),
        settings=question.settings,
        steps=question.plan.steps_that_ask(check.label),
    )


def _latency(question: Question, _: CheckDocument) -> CheckResult:
    """The e-process decides; people are shown this step's percentiles beside it."""
    found = _judge_latency(question)
    mine = question.this_step
    differences = percentile_differences(
        Histograms.of_arms([each.canary for each in mine]).merged(),
        Histograms.of_arms([each.control for each in mine]).merged(),
    )
    shown: list[JSON] = [asdict(difference) for difference in differences]
    evidence: dict[str, JSON] = {**found.evidence, "percentiles": shown}
    if question.reference is None or not question.has_control:
        return replace(found, evidence=evidence)
    evidence["reference"] = reference_to_json(question.reference)
    basis = tell_reference(question.reference)
    return replace(found, reason="; ".join(filter(None, (found.reason, basis))), evidence=evidence)


def _judge_latency(question: Question) -> CheckResult:
    if not question.has_control:
        return _without_control(question, kinds.LATENCY)
    reference = question.reference
    if reference is None:
        return CheckResult(
            kinds.LATENCY,
            Verdict.INSUFFICIENT_SAMPLE,
            f"stable's usual latency is not known yet: {question.reference_requests} of "
            f"{question.plan.reference_requests_min} requests",
            {"reference_requests": question.reference_requests},
        )
    # Only what came after the reference was frozen may be judged by it.
    judged = [i for i in question.intervals if i.started_at >= reference.frozen_at]
    indexes = {500: reference.p50, 950: reference.p95, 990: reference.p99}
    known = {permille: index for permille, index in indexes.items() if index is not None}
    series = dict(zip(known, series_of_latencies(judged, list(known.values())), strict=True))
    return judge_latency(
        series[950],
        series[990],
        question.settings,
        p50=series.get(500),
        frame=_frame(judged),
    )


def _sample_ratio(question: Question, _: CheckDocument) -> CheckResult:
    """Judge what the split assigned in this step, not what a version answered: of a warm cache's
    users fewer get as far as that."""
    plan, step = question.plan, question.step_index
    weight_bp, baseline_bp = question.weight_bp, plan.baseline_of(step)
    if baseline_bp:
        # Only canary and the slice beside it are counted; both are as large.
        weight_bp = round(WHOLE_BP * weight_bp / (weight_bp + baseline_bp))
    split = sum(0 < each.weight_bp < WHOLE_BP for each in plan.steps)
    return judge_step(question.intervals, step, weight_bp=weight_bp, steps=max(1, split))


def _observed(question: Question, check: CheckDocument) -> CheckResult:
    seen = question.observations.get(check.label, {})
    seen = {**seen, "steps": question.plan.steps_that_ask(check.label)}
    return OBSERVED[check.check](check, seen, question.settings)


Judge = Callable[[Question, CheckDocument], CheckResult]
JUDGES: dict[str, Judge] = {
    kinds.ERROR_RATE: _error_rate,
    kinds.LATENCY: _latency,
    kinds.UNANSWERED: _unanswered,
    kinds.SAMPLE_RATIO: _sample_ratio,
    kinds.ERROR_OBJECTIVE: _error_objective,
    kinds.ERROR_THRESHOLD: _error_threshold,
    kinds.LATENCY_OBJECTIVE: _latency_objective,
    **dict.fromkeys(OBSERVED, _observed),
}
