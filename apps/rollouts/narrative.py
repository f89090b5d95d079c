"""Tells a rollout in words, from its own rows: how it started, what was found, what came of it."""

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
    """Return the last answer of each check, by name."""
    rows = rollout.evaluations.order_by("check_name", "-id").distinct("check_name")
    return list(rows)


def summarise(rollout: Rollout) -> str:
    """Return one sentence: what, from where, to where, and why it stands where it stands."""
    share = f" at {rollout.weight_bp / 100:g} %" if rollout.is_live else ""
    return f"{_what(rollout)}: {rollout.phase.replace('_', ' ')}{share}. {rollout.reason}."


def _what(rollout: Rollout) -> str:
    source = f" from {rollout.baseline}" if rollout.baseline else ""
    return {
        Rollout.Kind.CANARY: f"Canary rollout of {rollout.target}{source}",
        Rollout.Kind.FIRST: f"First rollout of {rollout.model.name}, to {rollout.target}",
        Rollout.Kind.ROLLBACK: f"Instant rollback to {rollout.target}{source}",
        Rollout.Kind.SWITCH: f"Switch without steps to {rollout.target}{source}",
    }[Rollout.Kind(rollout.kind)]


def tell_story(rollout: Rollout) -> list[str]:
    """Return the whole story as sentences, in the order in which it happened."""
    plan = from_json(rollout.plan_document) if rollout.plan_document else None
    events = list(rollout.events.order_by("id"))
    answers = _answers_by_step(rollout)
    told = _beginning(rollout, plan)
    entered = rollout.started_at
    for before, event, following in zip([None, *events], events, [*events[1:], None], strict=False):
        if before is not None:
            told.append(f"{_at(event.at)}: {_tell_event(rollout, plan, before, event)}.")
            entered = event.at if event.step_index != before.step_index else entered
        if plan and _leaves_step(event, following):
            told.append(_tell_bake(rollout, plan, event, entered, following))
            told += [_tell_answer(answer) for answer in answers.get(event.step_index, [])]
    return [*told, _end(rollout)]


def _beginning(rollout: Rollout, plan: PlanDocument | None) -> list[str]:
    what = _what(rollout)
    by = ""
    if plan is not None:
        shares = " → ".join(f"{step.weight_bp / 100:g}" for step in plan.steps)
        by = f", by plan {plan.name} in {_count(len(plan.steps), 'step')} ({shares} %)"
    told = [f"{_at(rollout.started_at)}: {rollout.started_by} started it: {what}{by}."]
    if rollout.overrides:
        told.append(f"{rollout.started_by} overrode: {', '.join(rollout.overrides)}.")
    if rollout.retry_of_id:
        told.append(f"It tries rollout {rollout.retry_of_id} again.")
    if rollout.release:
        told.append(f"It moves together with the others of release {rollout.release.name}.")
    return told


def _tell_event(
    rollout: Rollout, plan: PlanDocument | None, before: RolloutEvent, event: RolloutEvent
) -> str:
    """Tell what came about, by whom, and why, unless the sentence before has said why."""
    who = "Interlock" if event.actor == INTERLOCK.name else event.actor
    done = {
        Phase.PREPARING: f"{who} began to prepare {rollout.target}",
        Phase.BAKING: _tell_step(who, plan, before, event),
        Phase.PAUSED: f"{who} paused it at {event.weight_bp / 100:g} %",
        Phase.PROMOTING: f"{who} made {rollout.target} stable",
        Phase.SUCCEEDED: "every instance serves from that table",
        Phase.ROLLING_BACK: f"{who} took all traffic off {rollout.target}",
        Phase.ROLLED_BACK: "every instance serves without it",
        Phase.FAILED: f"{rollout.target} could not be prepared",
    }.get(Phase(event.to_state), f"{who} started it")
    if note := event.evidence.get("note"):
        done = f"{who} {note}"
    why = event.reason.rstrip(".")
    # How it started has been told without the reason.
    is_told = event.reason == before.reason and before.from_state
    return done if is_told else f"{done}: {why}"


def _tell_step(
    who: str, plan: PlanDocument | None, before: RolloutEvent, event: RolloutEvent
) -> str:
    number = event.step_index + 1
    if event.step_index == before.step_index:
        went_on = before.to_state == Phase.PAUSED
        return f"{who} let it go on" if went_on else f"{who} opened the gate of step {number}"
    count, copies = "", ""
    if plan is not None:
        step = plan.steps[event.step_index]
        count = f" of {len(plan.steps)}" + (", the final bake," if step.is_final_bake else "")
        copies = f" and copies of {step.shadow_bp / 100:g} %" if step.shadow_bp else ""
    return f"{who} began step {number}{count} at {event.weight_bp / 100:g} %{copies}"


def _leaves_step(event: RolloutEvent, following: RolloutEvent | None) -> bool:
    """Say whether the step ends with this event, or has come no further than it."""
    if event.step_index < 0 or event.to_state not in ON_STEP:
        return False
    if following is None:
        return True
    return following.step_index != event.step_index or following.to_state not in ON_STEP


def _tell_bake(
    rollout: Rollout,
    plan: PlanDocument,
    event: RolloutEvent,
    entered: datetime,
    following: RolloutEvent | None,
) -> str:
    step = f"Step {event.step_index + 1}"
    asked = f"the plan asks for {_duration(plan.bake_of(event.step_index))} from when all serve it"
    if following is not None:
        return f"{step} lasted {_duration(following.at - entered)}; {asked}."
    if rollout.step_due_at is None:
        return f"{step} has not begun to bake; {asked}."
    return f"{step} bakes and may pass from {_at(rollout.step_due_at)}; {asked}."


def _answers_by_step(rollout: Rollout) -> dict[int, list[Evaluation]]:
    """Return the last answer of each check at each step."""
    last = rollout.evaluations.order_by("step_index", "check_name", "-id")
    rows = last.distinct("step_index", "check_name")
    return {step: list(answers) for step, answers in groupby(rows, lambda row: row.step_index)}


def _tell_answer(answer: Evaluation) -> str:
    verb = VERBS.get(answer.verdict, f"was {answer.verdict}")
    rule = f" [{answer.rule}]" if answer.rule and answer.verdict != Verdict.PASS else ""
    return f"There {answer.check_name} {verb}: {answer.reason.rstrip('.')}{rule}."


def _end(rollout: Rollout) -> str:
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


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
