"""One evaluation of a step: what is known is gathered, answered, logged, and decided upon.

The decision log keeps all that an answer was made from, so that it can be made again
(`repeat_answer`): the plan and the intervals are frozen, the rest is in the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from apps.rollouts import spread
from apps.rollouts.analysis import Observation, Question, answer
from apps.rollouts.decisions import Answered, Decision, StepClock, StepFacts, decide_step
from apps.rollouts.evidence import (
    GRACE,
    Interval,
    LatencyReference,
    closed_intervals,
    find_reference,
    is_fresh,
    reference_requests,
)
from apps.rollouts.frozen import freeze, frozen_intervals
from apps.rollouts.models import Evaluation, Rollout
from apps.rollouts.observers import observe_database
from apps.rollouts.plans import WHOLE_BP, PlanDocument, from_json
from apps.rollouts.verdicts import CheckResult
from contract.routing import BASELINE, STABLE

# A pass needs data of this step that is no older than so many check intervals.
FRESH_INTERVALS = 5
# A rollout that has so many intervals is looked at half as often, and so on.
INTERVALS_A_LOOK = 4_000


def evaluate(
    rollout: Rollout, plan: PlanDocument, asked: Mapping[str, Observation], now: datetime
) -> tuple[Decision, list[Answered]]:
    """Answer the step's checks, write them to the decision log, and decide.

    `asked` holds what services outside answered, by the check's label. The caller holds the row.
    """
    question = _question(rollout, plan, asked, now)
    checks = plan.steps[rollout.step_index].questions
    answers = [
        Answered(check, result) for check, result in zip(checks, answer(question), strict=True)
    ]
    facts = _facts(rollout, plan, question, now)
    _log(rollout, question, answers, now)
    return decide_step(answers, facts), answers


def _question(
    rollout: Rollout, plan: PlanDocument, asked: Mapping[str, Observation], now: datetime
) -> Question:
    reference = _reference(rollout, plan, now)
    edges = [] if reference is None else [reference.p50, reference.p95, reference.p99]
    intervals = freeze(
        rollout, _closed(rollout, plan, now), [each for each in edges if each is not None]
    )
    step = plan.steps[rollout.step_index]
    return Question(
        plan=plan,
        step_index=rollout.step_index,
        intervals=intervals,
        reference=reference,
        reference_requests=reference_requests(rollout, now),
        is_fresh=is_fresh(
            intervals,
            rollout.step_index,
            needs_control=step.weight_bp < WHOLE_BP,
            since=now - GRACE - FRESH_INTERVALS * _interval(rollout, plan),
        ),
        observations={**observe_database(rollout, step.questions, now), **asked},
        before=spread.spread_before(rollout, plan.interval_of(0)),
    )


def _closed(rollout: Rollout, plan: PlanDocument, now: datetime) -> list[Interval]:
    control = BASELINE if plan.control == "equal" else STABLE
    # The last intervals of the step before may still be open.
    open_s = max(
        map(plan.interval_of, range(max(0, rollout.step_index - 1), rollout.step_index + 1))
    )
    lengths = [plan.interval_of(index) for index in range(len(plan.steps))]
    return closed_intervals(rollout, open_s, now, control=control, lengths_s=lengths)


def next_look(rollout: Rollout, plan: PlanDocument, now: datetime) -> datetime:
    """Return when the step is to be evaluated next: after an interval, or more of them.

    A rollout that is paused for days goes on to gather intervals; its looks get rarer as each of
    them has more to go over.
    """
    spread = 1 + rollout.intervals.count() // INTERVALS_A_LOOK
    return now + spread * _interval(rollout, plan)


def _interval(rollout: Rollout, plan: PlanDocument) -> timedelta:
    return timedelta(seconds=plan.interval_of(rollout.step_index))


def _facts(rollout: Rollout, plan: PlanDocument, question: Question, now: datetime) -> StepFacts:
    step = plan.steps[rollout.step_index]
    is_shut = step.gate == "person" and rollout.approved_step != rollout.step_index
    return StepFacts(
        clock=StepClock(rollout.step_due_at or now, rollout.step_limit_at or now),
        now=now,
        requests=sum(interval.canary.requests for interval in question.this_step),
        requests_min=step.requests_min,
        gate=f"it waits for the approval of a person ({step.gate_role})" if is_shut else "",
    )


def _log(rollout: Rollout, question: Question, answers: list[Answered], now: datetime) -> None:
    Evaluation.objects.bulk_create(
        Evaluation(
            rollout=rollout,
            step_index=rollout.step_index,
            check_name=each.check.label,
            verdict=each.result.verdict.value,
            reason=each.result.reason,
            evidence=each.result.evidence,
            inputs=_inputs(question, each.check.label),
            rule=each.rule,
            at=now,
        )
        for each in answers
    )


def _inputs(question: Question, label: str) -> dict[str, Any]:
    return {
        "intervals": len(question.intervals),
        "reference": _reference_to_json(question.reference),
        "reference_requests": question.reference_requests,
        "is_fresh": question.is_fresh,
        "before": spread.to_json(question.before),
        "observation": dict(question.observations.get(label, {})),
    }


def repeat_answer(evaluation: Evaluation) -> CheckResult:
    """Answer the check again from what the decision log kept of it: the same inputs, no others."""
    rollout, inputs = evaluation.rollout, evaluation.inputs
    question = Question(
        plan=from_json(rollout.plan_document),
        step_index=evaluation.step_index,
        intervals=frozen_intervals(rollout, inputs["intervals"]),
        reference=_reference_from_json(inputs["reference"]),
        reference_requests=inputs["reference_requests"],
        is_fresh=inputs["is_fresh"],
        observations={evaluation.check_name: inputs["observation"]},
        # Evaluations from before it was read have none.
        before=spread.from_json(inputs.get("before", {})),
    )
    return next(each for each in answer(question) if each.check == evaluation.check_name)


def _reference(rollout: Rollout, plan: PlanDocument, now: datetime) -> LatencyReference | None:
    """Return stable's frozen quantiles; freeze them at the first tick that has enough of them."""
    if rollout.latency_reference:
        return _reference_from_json(rollout.latency_reference)
    found = find_reference(
        rollout,
        requests_min=plan.reference_requests_min,
        slack_us=plan.latency_slack_us,
        now=now,
    )
    if found is not None:
        rollout.latency_reference = _reference_to_json(found)
        rollout.save(update_fields=["latency_reference"])
    return found


def _reference_to_json(reference: LatencyReference | None) -> dict[str, Any]:
    if reference is None:
        return {}
    return {
        "p50": reference.p50,
        "p95": reference.p95,
        "p99": reference.p99,
        "n": reference.n,
        "frozen_at": reference.frozen_at.isoformat(),
    }


def _reference_from_json(stored: dict[str, Any]) -> LatencyReference | None:
    if not stored:
        return None
    return LatencyReference(
        p50=stored.get("p50"),
        p95=stored["p95"],
        p99=stored["p99"],
        n=stored["n"],
        frozen_at=datetime.fromisoformat(stored["frozen_at"]),
    )
