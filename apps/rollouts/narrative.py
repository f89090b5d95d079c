"""Describes a rollout in sentences from its rows: its start, its checks and its end."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import groupby

from apps.lib.actors import INTERLOCK
from apps.rollouts.models import Evaluation, Rollout, RolloutEvent
from apps.rollouts.plans import PlanDocument, from_json
from apps.rollouts.states import Phase
from apps.rollouts.verdicts import Verdict

VERBS = {Verdict.PASS.value: "passed", Verdict.FAIL.value: "failed"}
ON_STEP = {Phase.BAKING, Phase.PAUSED}


def latest_checks(rollout: Rollout) -> list[Evaluation]:
    """Return the latest result of each check, by name."""
    rows = rollout.evaluations.order_by("check_name", "-id").distinct("check_name")
    return list(rows)


def summarise(rollout: Rollout) -> str:
    """Summarise the rollout in one line: versions, phase, share and reason."""
    share = f" at {rollout.weight_bp / 100:g} %" if rollout.is_live else ""
    phase = rollout.phase.replace("_", " ")
    return f"{_describe_versions(rollout)}: {phase}{share}. {rollout.reason}."


def _describe_versions(rollout: Rollout) -> str:
    source = f" from {rollout.baseline}" if rollout.baseline else ""
    return {
        Rollout.Kind.CANARY: f"Canary rollout of {rollout.target}{source}",
        Rollout.Kind.FIRST: f"First rollout of {rollout.model.name}, to {rollout.target}",
        Rollout.Kind.ROLLBACK: f"Instant rollback to {rollout.target}{source}",
        Rollout.Kind.SWITCH: f"Switch without steps to {rollout.target}{source}",
    }[Rollout.Kind(rollout.kind)]


def describe_history(rollout: Rollout) -> list[str]:
    """Return the rollout's history as sentences, in chronological order."""
    plan = from_json(rollout.plan_document) if rollout.plan_document else None
    events = list(rollout.events.order_by("id"))
    results = _results_by_step(rollout)
    sentences = _describe_start(rollout, plan)
    entered = rollout.started_at
    for before, event, following in zip([None, *events], events, [*events[1:], None], strict=False):
        if before is not None:
            description = _describe_event(rollout, plan, before, event)
            sentences.append(f"{_at(event.at)}: {description}.")
            entered = event.at if event.step_index != before.step_index else entered
        if plan and _leaves_step(event, following):
            sentences.append(_describe_bake(rollout, plan, event, entered, following))
            sentences += map(_describe_result, results.get(event.step_index, []))
    return [*sentences, _describe_end(rollout)]


def _describe_start(rollout: Rollout, plan: PlanDocument | None) -> list[str]:
    versions = _describe_versions(rollout)
    by = ""
    if plan is not None:
        shares = " → ".join(f"{step.weight_bp / 100:g}" for step in plan.steps)
        by = f", by plan {plan.name} in {_count(len(plan.steps), 'step')} ({shares} %)"
    sentences = [f"{_at(rollout.started_at)}: {rollout.started_by} started it: {versions}{by}."]
    if rollout.overrides:
        sentences.append(f"{rollout.started_by} overrode: {', '.join(rollout.overrides)}.")
    if rollout.retry_of_id:
        sentences.append(f"It retries rollout {rollout.retry_of_id}.")
    if rollout.release:
        name = rollout.release.name
        sentences.append(f"It moves together with the other rollouts of release {name}.")
    return sentences


def _describe_event(
    rollout: Rollout, plan: PlanDocument | None, before: RolloutEvent, event: RolloutEvent
) -> str:
    """Describe an event with its actor, and its reason unless the start has already given it."""
    actor = "Interlock" if event.actor == INTERLOCK.name else event.actor
    done = {
        Phase.PREPARING: f"{actor} began to prepare {rollout.target}",
        Phase.BAKING: _describe_step(actor, plan, before, event),
        Phase.PAUSED: f"{actor} paused it at {event.weight_bp / 100:g} %",
        Phase.PROMOTING: f"{actor} made {rollout.target} stable",
        Phase.SUCCEEDED: "every instance serves the new table",
        Phase.ROLLING_BACK: f"{actor} took all traffic off {rollout.target}",
        Phase.ROLLED_BACK: "every instance serves without it",
        Phase.FAILED: f"{rollout.target} could not be prepared",
    }.get(Phase(event.to_state), f"{actor} started it")
    if note := event.evidence.get("note"):
        done = f"{actor} {note}"
    reason = event.reason.rstrip(".")
    # The sentence of the first event has no reason.
    is_repeated = event.reason == before.reason and before.from_state
    return done if is_repeated else f"{done}: {reason}"


def _describe_step(
    actor: str, plan: PlanDocument | None, before: RolloutEvent, event: RolloutEvent
) -> str:
    number = event.step_index + 1
    if event.step_index == before.step_index:
        is_resumed = before.to_state == Phase.PAUSED
        return f"{actor} resumed it" if is_resumed else f"{actor} opened the gate of step {number}"
    count, copies = "", ""
    if plan is not None:
        step = plan.steps[event.step_index]
        count = f" of {len(plan.steps)}" + (", the final bake," if step.is_final_bake else "")
        copies = f" and copies of {step.shadow_bp / 100:g} %" if step.shadow_bp else ""
    return f"{actor} began step {number}{count} at {event.weight_bp / 100:g} %{copies}"


def _leaves_step(event: RolloutEvent, following: RolloutEvent | None) -> bool:
    """Return whether this is the last event of its step so far."""
    if event.step_index < 0 or event.to_state not in ON_STEP:
        return False
    if following is None:
        return True
    return following.step_index != event.step_index or following.to_state not in ON_STEP


def _describe_bake(
    rollout: Rollout,
    plan: PlanDocument,
    event: RolloutEvent,
    entered: datetime,
    following: RolloutEvent | None,
) -> str:
    step = f"Step {event.step_index + 1}"
    bake = _duration(plan.bake_of(event.step_index))
    planned = f"its bake time is {bake}, from when all instances serve it"
    if following is not None:
        return f"{step} lasted {_duration(following.at - entered)}; {planned}."
    if rollout.step_due_at is None:
        return f"{step} has not started to bake; {planned}."
    return f"{step} bakes and may pass from {_at(rollout.step_due_at)}; {planned}."


def _results_by_step(rollout: Rollout) -> dict[int, list[Evaluation]]:
    """Return the last result of each check by step."""
    last = rollout.evaluations.order_by("step_index", "check_name", "-id")
    rows = last.distinct("step_index", "check_name")
    return {step: list(results) for step, results in groupby(rows, lambda row: row.step_index)}


def _describe_result(result: Evaluation) -> str:
    verb = VERBS.get(result.verdict, f"was {result.verdict}")
    rule = f" [{result.rule}]" if result.rule and result.verdict != Verdict.PASS else ""
    return f"Check {result.check_name} {verb}: {result.reason.rstrip('.')}{rule}."


def _describe_end(rollout: Rollout) -> str:
    phase = rollout.phase.replace("_", " ")
    if rollout.ended_at is None:
        return f"Now it is {phase}: {rollout.reason.rstrip('.')}."
    return f"It ended {phase} after {_duration(rollout.ended_at - rollout.started_at)}."


def _at(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _duration(span: timedelta) -> str:
    seconds = span.total_seconds()
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3_600:.1f} h"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
