"""Tells a rollout in words, from its own rows: how it started, what was found, what came of it."""

from __future__ import annotations

from datetime import datetime
from itertools import groupby

from apps.rollouts.models import Evaluation, Rollout, RolloutEvent
from apps.rollouts.states import Phase


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
    events = list(rollout.events.order_by("id"))
    answers = _answers_by_step(rollout)
    told = _beginning(rollout)
    for event, following in zip(events, [*events[1:], None], strict=True):
        if event.from_state:
            told.append(_tell_event(event))
        if _leaves_step(event, following):
            told += [_tell_answer(answer) for answer in answers.get(event.step_index, [])]
            told += [_tell_bake(rollout, event.step_index, events, following)]
    return [*told, _end(rollout)]


def _beginning(rollout: Rollout) -> list[str]:
    plan = rollout.plan_document.get("name")
    by = f" by plan {plan} with {len(rollout.plan_document['steps'])} steps" if plan else ""
    told = [f"{_at(rollout.started_at)}: {rollout.started_by} started it: {_what(rollout)}{by}."]
    if rollout.overrides:
        told.append(f"{rollout.started_by} overrode: {', '.join(rollout.overrides)}.")
    if rollout.retry_of_id:
        told.append(f"It tries rollout {rollout.retry_of_id} again.")
    if rollout.release:
        told.append(f"It is part of release {rollout.release.name}.")
    return told


def _tell_event(event: RolloutEvent) -> str:
    step = ""
    if event.step_index >= 0 and event.to_state == Phase.BAKING:
        step = f", step {event.step_index + 1} at {event.weight_bp / 100:g} %"
    phase = event.to_state.replace("_", " ")
    return f"{_at(event.at)}: {phase}{step} ({event.actor}): {event.reason}."


def _leaves_step(event: RolloutEvent, following: RolloutEvent | None) -> bool:
    """Say whether the step's story is over here, or is told as far as it has come."""
    if event.step_index < 0 or event.to_state not in {Phase.BAKING, Phase.PAUSED}:
        return False
    if following is None:
        return True
    stays = following.to_state in {Phase.BAKING, Phase.PAUSED}
    return following.step_index != event.step_index or not stays


def _tell_bake(
    rollout: Rollout, step_index: int, events: list[RolloutEvent], following: RolloutEvent | None
) -> str:
    entered = next(event for event in events if event.step_index == step_index)
    if following is None:
        return f"Step {step_index + 1} bakes since {_at(entered.at)}."
    took_s = (following.at - entered.at).total_seconds()
    return f"Step {step_index + 1} took {_duration(took_s)}, with the wait for the instances."


def _answers_by_step(rollout: Rollout) -> dict[int, list[Evaluation]]:
    """Return the last answer of each check at each step."""
    last = rollout.evaluations.order_by("step_index", "check_name", "-id")
    rows = last.distinct("step_index", "check_name")
    return {step: list(answers) for step, answers in groupby(rows, lambda row: row.step_index)}


def _tell_answer(answer: Evaluation) -> str:
    rule = f"; so: {answer.rule}" if answer.rule else ""
    return (
        f"{_at(answer.at)}: check {answer.check_name} at step {answer.step_index + 1} answered "
        f"{answer.verdict}: {answer.reason}{rule}."
    )


def _end(rollout: Rollout) -> str:
    if rollout.ended_at is None:
        return f"Now it is {rollout.phase.replace('_', ' ')}: {rollout.reason}."
    took = _duration((rollout.ended_at - rollout.started_at).total_seconds())
    return f"It ended after {took}: {rollout.phase.replace('_', ' ')}. {rollout.reason}."


def _at(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3_600:.1f} h"
