"""Evaluates a step: gathers its data, judges its checks, logs the results, and decides.

The decision log keeps all inputs of a result, so that `repeat_check` can compute it again: the plan
and the intervals are frozen, the rest is in the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from apps.rollouts import baseline_dispersion
from apps.rollouts.analysis import Observation, StepInputs, judge_checks
from apps.rollouts.decisions import Decision, JudgedCheck, StepClock, StepFacts, decide_step
from apps.rollouts.evidence import GRACE, Interval, closed_intervals
from apps.rollouts.interval_store import freeze, frozen_intervals
from apps.rollouts.latency_baseline import reference_from_json, reference_of, reference_to_json
from apps.rollouts.metric_providers import observe_database
from apps.rollouts.models import Evaluation, Rollout
from apps.rollouts.plans import WHOLE_BP, PlanDocument, from_json
from apps.rollouts.remaining_evidence import describe_missing
from apps.rollouts.sparse_traffic import is_fresh, pool_sparse
from apps.rollouts.verdicts import CheckResult
from contract.routing import BASELINE, STABLE

# A rollout is evaluated half as often after this many intervals, a third as often after twice as
# many, and so on.
INTERVALS_PER_EVALUATION = 4_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def evaluate(
    rollout: Rollout, plan: PlanDocument, observations: Mapping[str, Observation], now: datetime
) -> tuple[Decision, list[JudgedCheck]]:
    """Judge the step's checks, write the results to the decision log, and decide.

    `observations` are those of external services, by check label. The caller has locked the row.
    """
    inputs, frozen = _gather_inputs(rollout, plan, observations, now)
    checks = plan.steps[rollout.step_index].check_documents
    judged = [
        JudgedCheck(check, result)
        for check, result in zip(checks, judge_checks(inputs), strict=True)
    ]
    facts = _facts(rollout, plan, inputs, judged, now)
    _log(rollout, _inputs_to_json(inputs, frozen), judged, now)
    return decide_step(judged, facts), judged


def _gather_inputs(
    rollout: Rollout, plan: PlanDocument, observations: Mapping[str, Observation], now: datetime
) -> tuple[StepInputs, int]:
    """Return the inputs of the checks, and the number of frozen intervals behind them."""
    reference, reference_requests = reference_of(rollout, plan, now)
    edges = [] if reference is None else [reference.p50, reference.p95, reference.p99]
    intervals = freeze(
        rollout, _closed(rollout, plan, now), [each for each in edges if each is not None]
    )
    step = plan.steps[rollout.step_index]
    inputs = StepInputs(
        plan=plan,
        step_index=rollout.step_index,
        intervals=pool_sparse(intervals),
        reference=reference,
        reference_requests=reference_requests,
        is_fresh=is_fresh(
            intervals,
            rollout.step_index,
            needs_control=step.weight_bp < WHOLE_BP,
            interval_s=plan.interval_of(rollout.step_index),
            now=now - GRACE,
        ),
        observations={**observe_database(rollout, step.check_documents, now), **observations},
        before=baseline_dispersion.error_dispersion_before(rollout, plan.interval_of(0)),
        timeout_s=rollout.model.timeout_ms / 1_000,
    )
    return inputs, len(intervals)


def _closed(rollout: Rollout, plan: PlanDocument, now: datetime) -> list[Interval]:
    control = BASELINE if plan.control == "equal" else STABLE
    # The last intervals of the previous step may still be open.
    open_s = max(
        map(plan.interval_of, range(max(0, rollout.step_index - 1), rollout.step_index + 1))
    )
    lengths = [plan.interval_of(index) for index in range(len(plan.steps))]
    return closed_intervals(rollout, open_s, now, control=control, lengths_s=lengths)


def next_evaluation_at(rollout: Rollout, plan: PlanDocument, now: datetime) -> datetime:
    """Return when to evaluate the step next: when the next interval closes, or a later one.

    Intervals are aligned to the epoch, on all instances alike. A rollout that is paused for days
    continues to gather intervals; it is evaluated less often as each evaluation reads more.
    """
    interval = _interval(rollout, plan)
    latest = now + (1 + rollout.intervals.count() // INTERVALS_PER_EVALUATION) * interval
    return latest - (latest - GRACE - EPOCH) % interval


def _interval(rollout: Rollout, plan: PlanDocument) -> timedelta:
    return timedelta(seconds=plan.interval_of(rollout.step_index))


def _facts(
    rollout: Rollout,
    plan: PlanDocument,
    inputs: StepInputs,
    judged: list[JudgedCheck],
    now: datetime,
) -> StepFacts:
    step = plan.steps[rollout.step_index]
    is_gate_closed = step.gate == "person" and rollout.approved_step != rollout.step_index
    due_at, intervals = rollout.step_due_at or now, inputs.this_step
    requests = sum(interval.canary.requests for interval in intervals)
    began_at = due_at - plan.bake_of(rollout.step_index)
    return StepFacts(
        clock=StepClock(
            due_at, rollout.step_limit_at or now, began_at + timedelta(seconds=plan.wait_max_s)
        ),
        now=now,
        requests=requests,
        requests_min=step.requests_min,
        gate=f"waiting for approval by a person ({step.gate_role})" if is_gate_closed else "",
        missing=describe_missing(
            judged,
            intervals,
            now=now,
            samples_min=inputs.settings.min_samples,
            requests=(requests, step.requests_min),
        ),
    )


def _log(
    rollout: Rollout, inputs: dict[str, Any], judged: list[JudgedCheck], now: datetime
) -> None:
    observations = inputs.pop("observations")
    Evaluation.objects.bulk_create(
        Evaluation(
            rollout=rollout,
            step_index=rollout.step_index,
            check_name=each.check.label,
            verdict=each.result.verdict.value,
            reason=each.result.reason,
            evidence=each.result.evidence,
            inputs={**inputs, "observation": dict(observations.get(each.check.label, {}))},
            rule=each.rule,
            at=now,
        )
        for each in judged
    )


def _inputs_to_json(inputs: StepInputs, frozen: int) -> dict[str, Any]:
    return {
        "intervals": frozen,
        "reference": reference_to_json(inputs.reference),
        "reference_requests": inputs.reference_requests,
        "is_fresh": inputs.is_fresh,
        "observations": inputs.observations,
        "before": baseline_dispersion.to_json(inputs.before),
        "timeout_s": inputs.timeout_s,
    }


def repeat_check(evaluation: Evaluation) -> CheckResult:
    """Judge the check again from exactly the inputs that the decision log kept."""
    rollout, stored = evaluation.rollout, evaluation.inputs
    inputs = StepInputs(
        plan=from_json(rollout.plan_document),
        step_index=evaluation.step_index,
        intervals=pool_sparse(frozen_intervals(rollout, stored["intervals"])),
        reference=reference_from_json(stored["reference"]),
        reference_requests=stored["reference_requests"],
        is_fresh=stored["is_fresh"],
        observations={evaluation.check_name: stored["observation"]},
        # Older evaluations have none.
        before=baseline_dispersion.from_json(stored.get("before", {})),
        timeout_s=stored.get("timeout_s", 0.0),
    )
    return next(each for each in judge_checks(inputs) if each.check == evaluation.check_name)
