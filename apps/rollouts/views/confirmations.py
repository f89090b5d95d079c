"""Confirmation questions of rollout actions, with the consequences."""

from __future__ import annotations

from datetime import datetime

from apps.lib.actors import Actor
from apps.lib.confirm import Choice, Question
from apps.rollouts.gates import closed_gates
from apps.rollouts.models import Release, Rollout
from apps.rollouts.overrides import Override, holding_freeze
from apps.rollouts.plans import from_json
from apps.rollouts.selectors.rollouts import members_of
from apps.rollouts.services import can_roll_back
from apps.rollouts.states import Phase

REASON = "Reason (optional, logged)"
OVERRIDE_REASON = "Reason for the override (logged)"


def abort_label(rollout: Rollout) -> str:
    """Return the label of the abort button; after a promotion it rolls back."""
    is_promoted = rollout.phase in {Phase.PROMOTING, Phase.SUCCEEDED}
    if is_promoted and rollout.baseline and rollout.kind != Rollout.Kind.ROLLBACK:
        return f"Roll back to {rollout.baseline.number}"
    return "Abort"


def can_abort(rollout: Rollout) -> bool:
    """Return whether an abort has an effect."""
    return (rollout.is_live and rollout.phase != Phase.ROLLING_BACK) or can_roll_back(rollout)


def of_abort(rollout: Rollout) -> Question:
    name, label = rollout.model.name, abort_label(rollout)
    if rollout.baseline is None:
        text = f"Abort this rollout? {name} stays without a stable version."
    elif label == "Abort":
        text = f"Abort this rollout? All traffic of {name} goes back to version "
        text += f"{rollout.baseline.number} at once."
    else:
        text = f"Roll {name} back from version {rollout.target.number} to version "
        text += f"{rollout.baseline.number}? All traffic moves at once, without steps."
    others = [each for each in members_of(rollout) if can_abort(each)]
    if others:
        names = ", ".join(str(each.model.name) for each in others)
        text += f" The other models of the release are rolled back with it: {names}."
    return Question(text, label, stands=True)


def of_release_abort(release: Release, rollouts: list[Rollout]) -> Question:
    affected = [each for each in rollouts if can_abort(each)]
    pairs = [(each.model.name, each.baseline) for each in affected]
    back = [f"{name} to version {version.number}" for name, version in pairs if version]
    text = f"Abort release {release.name}? All traffic goes back at once: {', '.join(back)}."
    return Question(text, release_abort_label(affected), stands=True)


def release_abort_label(affected: list[Rollout]) -> str:
    """Return the label of the abort button of a release."""
    promoted = {Phase.PROMOTING, Phase.SUCCEEDED}
    is_over = bool(affected) and all(each.phase in promoted for each in affected)
    return f"{'Roll back' if is_over else 'Abort'} all {len(affected)}"


def of_promote(rollout: Rollout, actor: Actor, now: datetime) -> Question:
    text = (
        f"Make version {rollout.target.number} of {rollout.model.name} stable now? All traffic "
        f"moves to it from {rollout.weight_bp / 100:g} %, without the remaining steps and checks."
        f"{_with_others(rollout)}"
    )
    return _forced(rollout, text, f"Promote {rollout.target.number} now", actor, now, True)


def of_skip(rollout: Rollout, actor: Actor, now: datetime) -> Question:
    number = rollout.step_index + 1
    count = len(from_json(rollout.plan_document).steps) if rollout.plan_document else 0
    text = (
        f"Skip step {number} of {count}? Its remaining bake time and checks are skipped, and the "
        f"next step begins at once.{_with_others(rollout)}"
    )
    return _forced(rollout, text, f"Skip step {number}", actor, now, False)


def of_approve(rollout: Rollout, actor: Actor) -> Question:
    number = rollout.step_index + 1
    text = f"Approve step {number}? It passes as soon as its checks pass. This cannot be undone."
    choices = _gate_choices(rollout, actor, False)
    return _with_choices(text, f"Approve step {number}", choices)


def of_freeze(rollout: Rollout, now: datetime) -> Question:
    freeze = holding_freeze(rollout, now)
    until = f" until {freeze.words}: {freeze.reason}" if freeze else ""
    text = f"Let {rollout.target} continue during the freeze{until}?{_with_others(rollout)}"
    return Question(text, "Override the freeze", OVERRIDE_REASON, needs_reason=True)


def _with_others(rollout: Rollout) -> str:
    others = [str(each.target) for each in members_of(rollout) if each.is_live]
    return f" The other models of the release move with it: {', '.join(others)}." if others else ""


def _forced(
    rollout: Rollout, text: str, yes: str, actor: Actor, now: datetime, to_the_end: bool
) -> Question:
    choices = _gate_choices(rollout, actor, to_the_end)
    if (freeze := holding_freeze(rollout, now)) is not None:
        words = f"Override the freeze until {freeze.words}: {freeze.reason}"
        choices = (*choices, Choice(Override.FREEZE.value, words))
    return _with_choices(text, yes, choices)


def _gate_choices(rollout: Rollout, actor: Actor, to_the_end: bool) -> tuple[Choice, ...]:
    """Return the override for closed gates that the actor may not open."""
    live = [rollout, *(each for each in members_of(rollout) if each.is_live)]
    closed = [
        gate
        for each in live
        for gate in closed_gates(each, to_the_end=to_the_end)
        if not gate.opens_for(actor)
    ]
    if not closed:
        return ()
    names = " and ".join(gate.words for gate in closed)
    text = f"Override {names}: it is closed, and you may not open it"
    return (Choice(Override.GATE.value, text),)


def _with_choices(text: str, yes: str, choices: tuple[Choice, ...]) -> Question:
    if choices:
        return Question(text, yes, OVERRIDE_REASON, needs_reason=True, choices=choices)
    return Question(text, yes, REASON)
