"""Judges the checks of a step. Pure: intervals and observations in, results out."""

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
from apps.rollouts.external_checks import OBSERVATION_JUDGES
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
from apps.rollouts.latency_baseline import describe_reference, reference_to_json
from apps.rollouts.no_control import deciders_of, judge_without_control
from apps.rollouts.objectives import Part, judge_error_objective, judge_latency_objective
from apps.rollouts.percentiles import percentile_differences
from apps.rollouts.plans import WHOLE_BP, PlanDocument
from apps.rollouts.sample_ratio import judge_step
from apps.rollouts.thresholds import judge_error_threshold
from apps.rollouts.verdicts import JSON, CheckResult, Verdict

# The data of a check that is not in the intervals; `problem` describes why there is none.
Observation = Mapping[str, JSON]


@dataclass(frozen=True)
class StepInputs:
    """The data that the checks of one step are judged from."""

    plan: PlanDocument
    step_index: int
    intervals: Sequence[Interval]
    reference: LatencyReference | None
    reference_requests: int
    # Whether this step has recent data of both versions; without them no check may pass.
    is_fresh: bool = True
    # By check label: data that is not in the intervals.
    observations: Mapping[str, Observation] = field(default_factory=dict)
    # How stable's errors varied over time before the rollout, where that is known.
    before: History | None = None
    # The longest duration of a request, in seconds.
    timeout_s: float = 0.0

    @property
    def settled(self) -> list[Interval]:
        """The intervals all of whose requests have ended; later ones may still get worse."""
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


def judge_checks(inputs: StepInputs) -> list[CheckResult]:
    """Return the result of each check of the step, in the plan's order."""
    checks = inputs.plan.steps[inputs.step_index].check_documents
    return [_judge_check(inputs, check) for check in checks]


def _judge_check(inputs: StepInputs, check: CheckDocument) -> CheckResult:
    observation = inputs.observations.get(check.label, {})
    if problem := observation.get("problem"):
        result = CheckResult(check.label, Verdict.PROVIDER_ERROR, str(problem), {})
    else:
        result = replace(JUDGES[check.check](inputs, check), check=check.label)
    return _require_fresh(result, inputs) if check.check in kinds.OF_TRAFFIC else result


def _require_fresh(result: CheckResult, inputs: StepInputs) -> CheckResult:
    """Replace a pass that rests on data from before this step, or on old data, by no data."""
    if result.verdict is not Verdict.PASS or inputs.is_fresh:
        return result
    return CheckResult(
        result.check,
        Verdict.NO_DATA,
        f"no recent data in this step (last result: {result.reason})",
        result.evidence,
    )


def _error_rate(inputs: StepInputs, _: CheckDocument) -> CheckResult:
    if not inputs.has_control:
        return _without_control(inputs, kinds.ERROR_RATE)
    series = series_of_rate(inputs.intervals, ERRORS, inputs.before)
    return judge_error_rate(series, inputs.settings, _frame(inputs.intervals, ERRORS))


def _unanswered(inputs: StepInputs, _: CheckDocument) -> CheckResult:
    if not inputs.has_control:
        return _without_control(inputs, kinds.UNANSWERED)
    result = _judge_unanswered(inputs, inputs.intervals)
    settled = inputs.settled
    if result.verdict is not Verdict.PASS or len(settled) == len(inputs.intervals):
        return result
    if not any(each.canary.assigned for each in settled if each.step_index == inputs.step_index):
        reason = f"requests of this step may still be in progress (so far: {result.reason})"
        return CheckResult(result.check, Verdict.INSUFFICIENT_SAMPLE, reason, result.evidence)
    # A request in progress does not count as unanswered yet, which proves no safety.
    earlier = _judge_unanswered(inputs, settled)
    return result if earlier.verdict is Verdict.PASS else earlier


def _judge_unanswered(inputs: StepInputs, intervals: Sequence[Interval]) -> CheckResult:
    frame = _frame(intervals, UNANSWERED)
    if not is_by_client(intervals):
        # A client decides how long it waits, and so whether it gets an answer. A single client
        # whose unit is on the canary must not fail it.
        frame = replace(
            frame,
            clusters=lambda start: [by_cluster(each, UNANSWERED) for each in intervals[start:]],
        )
    return judge_unanswered(series_of_rate(intervals, UNANSWERED), inputs.settings, frame)


def _without_control(inputs: StepInputs, check: str) -> CheckResult:
    """Judge a step at 100 %: stable gets no traffic, and its past proves nothing about now."""
    arms = [each.canary for each in inputs.this_step]
    n, errors = UNANSWERED if check == kinds.UNANSWERED else ERRORS
    step = inputs.plan.steps[inputs.step_index]
    return judge_without_control(
        check,
        n=sum(getattr(arm, n) for arm in arms),
        errors=sum(getattr(arm, errors) for arm in arms),
        deciders=deciders_of(step, check),
    )


def _frame(intervals: Sequence[Interval], names: tuple[str, str] | None = None) -> Frame:
    return Frame(
        started_at=[each.started_at for each in intervals],
        counted=" (counted by client)" if is_by_client(intervals) else "",
        has_slices=has_slices(intervals),
        instances=lambda start: [
            by_instance(each, names) for each in intervals[start:] if names is not None
        ],
    )


def _error_buckets(intervals: Sequence[Interval]) -> list[BucketCounts]:
    return [
        BucketCounts(i.canary.n, i.canary.errors, i.control.n, i.control.errors) for i in intervals
    ]


def _error_objective(inputs: StepInputs, check: CheckDocument) -> CheckResult:
    return judge_error_objective(
        [Part(i.canary.n, i.canary.errors) for i in inputs.this_step],
        [Part(i.canary.assigned, i.canary.unanswered) for i in inputs.this_step],
        limit_bp=check.setting("limit_bp"),
        settings=inputs.settings,
        steps=inputs.plan.steps_with_check(check.label),
    )


def _error_threshold(inputs: StepInputs, check: CheckDocument) -> CheckResult:
    if not inputs.has_control:
        return _without_control(inputs, kinds.ERROR_THRESHOLD)
    return judge_error_threshold(
        _error_buckets(inputs.this_step),
        margin_bp=check.setting("margin_bp"),
        samples_min=check.setting("samples_min"),
    )


def _latency_objective(inputs: StepInputs, check: CheckDocument) -> CheckResult:
    return judge_latency_objective(
        [i.canary.latency for i in inputs.this_step],
        quantile_permille=check.setting("quantile_permille"),
        limit_us=check.setting("limit_us"),
        settings=inputs.settings,
        steps=inputs.plan.steps_with_check(check.label),
    )


def _latency(inputs: StepInputs, _: CheckDocument) -> CheckResult:
    """Judge latency by the e-process, and add this step's percentiles for display."""
    result = _judge_latency(inputs)
    intervals = inputs.this_step
    differences = percentile_differences(
        Histograms.of_arms([each.canary for each in intervals]).merged(),
        Histograms.of_arms([each.control for each in intervals]).merged(),
    )
    shown: list[JSON] = [asdict(difference) for difference in differences]
    evidence: dict[str, JSON] = {**result.evidence, "percentiles": shown}
    if inputs.reference is None or not inputs.has_control:
        return replace(result, evidence=evidence)
    evidence["reference"] = reference_to_json(inputs.reference)
    basis = describe_reference(inputs.reference)
    reason = "; ".join(filter(None, (result.reason, basis)))
    return replace(result, reason=reason, evidence=evidence)


def _judge_latency(inputs: StepInputs) -> CheckResult:
    if not inputs.has_control:
        return _without_control(inputs, kinds.LATENCY)
    reference = inputs.reference
    if reference is None:
        return CheckResult(
            kinds.LATENCY,
            Verdict.INSUFFICIENT_SAMPLE,
            f"{inputs.reference_requests} of {inputs.plan.reference_requests_min} requests "
            "recorded to measure stable's usual latency",
            {"reference_requests": inputs.reference_requests},
        )
    # The reference applies only to data from after it was frozen.
    judged = [i for i in inputs.intervals if i.started_at >= reference.frozen_at]
    indexes = {500: reference.p50, 950: reference.p95, 990: reference.p99}
    known = {permille: index for permille, index in indexes.items() if index is not None}
    series = dict(zip(known, series_of_latencies(judged, list(known.values())), strict=True))
    return judge_latency(
        series[950],
        series[990],
        inputs.settings,
        p50=series.get(500),
        frame=_frame(judged),
    )


def _sample_ratio(inputs: StepInputs, _: CheckDocument) -> CheckResult:
    """Judge the units that the split assigned in this step, whether or not a version answered them:
    a warm cache answers some itself."""
    plan, step = inputs.plan, inputs.step_index
    weight_bp, baseline_bp = inputs.weight_bp, plan.baseline_of(step)
    if baseline_bp:
        # Only the canary and the equally large baseline slice are counted.
        weight_bp = round(WHOLE_BP * weight_bp / (weight_bp + baseline_bp))
    split = sum(0 < each.weight_bp < WHOLE_BP for each in plan.steps)
    return judge_step(inputs.intervals, step, weight_bp=weight_bp, steps=max(1, split))


def _judge_observation(inputs: StepInputs, check: CheckDocument) -> CheckResult:
    observation = {
        **inputs.observations.get(check.label, {}),
        "steps": inputs.plan.steps_with_check(check.label),
    }
    return OBSERVATION_JUDGES[check.check](check, observation, inputs.settings)


Judge = Callable[[StepInputs, CheckDocument], CheckResult]
JUDGES: dict[str, Judge] = {
    kinds.ERROR_RATE: _error_rate,
    kinds.LATENCY: _latency,
    kinds.UNANSWERED: _unanswered,
    kinds.SAMPLE_RATIO: _sample_ratio,
    kinds.ERROR_OBJECTIVE: _error_objective,
    kinds.ERROR_THRESHOLD: _error_threshold,
    kinds.LATENCY_OBJECTIVE: _latency_objective,
    **dict.fromkeys(OBSERVATION_JUDGES, _judge_observation),
}
