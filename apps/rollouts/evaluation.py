"""One evaluation of a step: what is known is gathered, answered, logged, and decided upon.

The decision log keeps all that an answer was made from, so that it can be made again
(`repeat_answer`): the plan and the intervals are frozen, the rest is in the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from apps.rollouts import baseline_dispersion
from apps.rollouts.analysis import Observation, Question, answer
from apps.rollouts.decisions import Answered, Decision, StepClock, StepFacts, decide_step
from apps.rollouts.evidence import GRACE, Interval, closed_intervals
from apps.rollouts.interval_store import freeze, frozen_intervals
from apps.rollouts.latency_baseline import reference_from_json, reference_of, reference_to_json
from apps.rollouts.metric_providers import observe_database
from apps.rollouts.models import Evaluation, Rollout
from apps.rollouts.plans import WHOLE_BP, PlanDocument, from_json
from apps.rollouts.remaining_evidence import missing_of
from apps.rollouts.sparse_traffic import is_fresh, pool_sparse
from apps.rollouts.verdicts import CheckResult
from contract.routing import BASELINE, STABLE

# A rollout that has so many intervals is looked at half as often, and so on.
INTERVALS_A_LOOK = 4_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def evaluate(
    rollout: Rollout, plan: PlanDocument, asked: Mapping[str, Observation], now: datetime
) -> tuple[Decision, list[Answered]]:
    """Answer the step's checks, write them to the decision log, and decide.

    `asked` holds what services outside answered, by the check's label. The caller holds the row.
    """
    question, frozen = _question(rollout, plan, asked, now)
    checks = plan.steps[rollout.step_index].questions
    answers = [
        Answered(check, result) for check, result in zip(checks, answer(question), strict=True)
    ]
    facts = _facts(rollout, plan, question, answers, now)
    _log(rollout, _inputs(question, frozen), answers, now)
    return decide_step(answers, facts), answers


def _question(
    rollout: Rollout, plan: PlanDocument, asked: Mapping[str, Observation], now: datetime
) -> tuple[Question, int]:
    """Return what the checks are answered from, and how many intervals that is made from."""
    reference, reference_requests = reference_of(rollout, plan, now)
    edges = [] if reference is None else [reference.p50, reference.p95, reference.p99]
    intervals = freeze(
        rollout, _closed(rollout, plan, now), [each for each in edges if each is not None]
    )
    step = plan.steps[rollout.step_index]
    question = Question(
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
        observations={**observe_database(rollout, step.questions, now), **asked},
        before=baseline_dispersion.spread_before(rollout, plan.interval_of(0)),
        timeout_s=rollout.model.timeout_ms / 1_000,
    )
    return question, len(intervals)


def _closed(rollout: Rollout, plan: PlanDocument, now: datetime) -> list[Interval]:
    control = BASELINE if plan.control == "equal" else STABLE
    # The last intervals of the step before may still be open.
    open_s = max(
        map(plan.interval_of, range(max(0, rollout.step_index - 1), rollout.step_index + 1))
    )
    lengths = [plan.interval_of(index) for index in range(len(plan.steps))]
    return closed_intervals(rollout, open_s, now, control=control, lengths_s=lengths)


def next_look(rollout: Rollout, plan: PlanDocument, now: datetime) -> datetime:
    """Return when the step is to be evaluated next: as the next interval closes, or a later one.

    Intervals are aligned to the epoch, on all instances alike. A rollout that is paused for days
    goes on to gather intervals; its looks get rarer as each of them has more to go over.
    """
    interval = _interval(rollout, plan)
    latest = now + (1 + rollout.intervals.count() // INTERVALS_A_LOOK) * interval
    return latest - (latest - GRACE - EPOCH) % interval


def _interval(rollout: Rollout, plan: PlanDocument) -> timedelta:
    return timedelta(seconds=plan.interval_of(rollout.step_index))


def _facts(
    rollout: Rollout,
    plan: PlanDocument,
    question: Question,
    answers: list[Answered],
    now: datetime,
) -> StepFacts:
    step = plan.steps[rollout.step_index]
    is_shut = step.gate == "person" and rollout.approved_step != rollout.step_index
    due_at, mine = rollout.step_due_at or now, question.this_step
    requests = sum(interval.canary.requests for interval in mine)
    began_at = due_at - plan.bake_of(rollout.step_index)
    return StepFacts(
        clock=StepClock(
            due_at, rollout.step_limit_at or now, began_at + timedelta(seconds=plan.wait_max_s)
        ),
        now=now,
        requests=requests,
        requests_min=step.requests_min,
        gate=f"it waits for the approval of a person ({step.gate_role})" if is_shut else "",
        missing=missing_of(
            answers,
            mine,
            now=now,
            samples_min=question.settings.min_samples,
            requests=(requests, step.requests_min),
        ),
    )


def _log(rollout: Rollout, inputs: dict[str, Any], answers: list[Answered], now: datetime) -> None:
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
        for each in answers
    )


def _inputs(question: Question, frozen: int) -> dict[str, Any]:
    return {
        "intervals": frozen,
        "reference": reference_to_json(question.reference),
        "reference_requests": question.reference_requests,
        "is_fresh": question.is_fresh,
        "observations": question.observations,
        "before": baseline_dispersion.to_json(question.before),
        "timeout_s": question.timeout_s,
    }


def repeat_answer(evaluation: Evaluation) -> CheckResult:
    """Answer the check again from what the decision log kept of it: the same inputs, no others."""
    rollout, inputs = evaluation.rollout, evaluation.inputs
    question = Question(
        plan=from_json(rollout.plan_document),
        step_index=evaluation.step_index,
        intervals=pool_sparse(frozen_intervals(rollout, inputs["intervals"])),
        reference=reference_from_json(inputs["reference"]),
        reference_requests=inputs["reference_requests"],
        is_fresh=inputs["is_fresh"],
        observations={evaluation.check_name: inputs["observation"]},
        # Evaluations from before it was read have none.
        before=baseline_dispersion.from_json(inputs.get("before", {})),
        timeout_s=inputs.get("timeout_s", 0.0),
    )
    return next(each for each in answer(question) if each.check == evaluation.check_name)
