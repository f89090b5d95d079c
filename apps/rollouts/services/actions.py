"""Actions on a live rollout: pause, resume, skip, approve, promote, override a freeze."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from django.db import transaction

from apps.lib.actors import Actor
from apps.lib.errors import Conflict, Invalid
from apps.rollouts.freezes import open_freezes
from apps.rollouts.gates import closed_gates, gate_role, pass_gates
from apps.rollouts.models import Rollout
from apps.rollouts.overrides import (
    Override,
    freeze_reach,
    frozen,
    holding_freeze,
    read_overrides,
    require_reach,
)
from apps.rollouts.phases import append_note, companions, enter_step, set_phase, switch_stable
from apps.rollouts.plans import from_json
from apps.rollouts.services.locked_rows import (
    audit_rollout,
    lock_rollout,
    move_together,
    require_operator,
)
from apps.rollouts.states import Phase


@transaction.atomic
def pause_rollout(
    *, rollout: Rollout, actor: Actor, now: datetime, reason: str = "", revision: int | None = None
) -> Rollout:
    """Stop the bake clock of a rollout. Weight and guardrail checks stay."""
    row = lock_rollout(rollout, revision)
    for each in move_together(row, {Phase.BAKING}, "paused", actor):
        set_phase(each, Phase.PAUSED, reason or "paused manually", actor, now)
        audit_rollout(each, "paused", actor, Phase.BAKING)
    return row


@transaction.atomic
def resume_rollout(
    *, rollout: Rollout, actor: Actor, now: datetime, reason: str = "", revision: int | None = None
) -> Rollout:
    """Restart the bake time of a paused rollout; its evidence stays.

    Resumes all paused rollouts of its release.
    """
    row = lock_rollout(rollout, revision)
    if row.phase != Phase.PAUSED:
        raise Conflict(f"The rollout is {row.phase}; only a paused rollout can be resumed")
    for each in (row, *companions(row)):
        if each.phase == Phase.PAUSED:
            if each is not row:
                require_operator(each, actor)
            clock = {"step_due_at": None, "step_limit_at": None, "next_check_at": None}
            set_phase(each, Phase.BAKING, reason or "resumed manually", actor, now, **clock)
            audit_rollout(each, "resumed", actor, Phase.PAUSED)
    return row


@transaction.atomic
def promote_now(
    *,
    rollout: Rollout,
    actor: Actor,
    now: datetime,
    reason: str = "",
    revision: int | None = None,
    overrides: Collection[str] = (),
) -> Rollout:
    """Make the target stable now, without the remaining steps of the plan.

    Raises:
        Conflict: it is neither baking nor paused, or a freeze window is open.
        Forbidden: `actor` may not open one of the remaining gates.
        Invalid: an override has no reason.
    """
    row = lock_rollout(rollout, revision)
    together = move_together(row, {Phase.BAKING, Phase.PAUSED}, "promoted", actor)
    notes = _pass_rules(together, actor, now, read_overrides(overrides), reason, to_the_end=True)
    for each in together:
        before = each.phase
        switch_stable(each, _with_notes(reason or "promoted manually", notes), actor, now, None)
        audit_rollout(each, "promoted", actor, before)
    return row


@transaction.atomic
def skip_step(
    *,
    rollout: Rollout,
    actor: Actor,
    now: datetime,
    reason: str = "",
    revision: int | None = None,
    overrides: Collection[str] = (),
) -> Rollout:
    """Start the next step without waiting for the checks of the current one.

    Raises:
        Conflict: it is neither baking nor paused, this is the last step (use promote_now), or a
            freeze window is open.
        Forbidden: `actor` may not open the gate of the step.
        Invalid: an override has no reason.
    """
    row = lock_rollout(rollout, revision)
    together = move_together(row, {Phase.BAKING, Phase.PAUSED}, "moved to the next step", actor)
    for each in together:
        if each.step_index + 1 >= len(from_json(each.plan_document).steps):
            raise Conflict(f"{each.target} is at its last step; promote it now, or let it bake")
    notes = _pass_rules(together, actor, now, read_overrides(overrides), reason)
    for each in together:
        before = each.phase
        text = _with_notes(reason or f"step {each.step_index + 1} skipped manually", notes)
        enter_step(each, each.step_index + 1, text, actor, now)
        audit_rollout(each, "step_skipped", actor, before)
    return row


def _pass_rules(
    rows: Sequence[Rollout],
    actor: Actor,
    now: datetime,
    overrides: Collection[str],
    reason: str,
    *,
    to_the_end: bool = False,
) -> str:
    """Require that no freeze and no gate blocks the rows; return the notes for the log."""
    notes = []
    for each in rows:
        if (freeze := holding_freeze(each, now)) is not None:
            if Override.FREEZE not in overrides:
                raise frozen(each.model, freeze)
            notes.append(cover_freeze(each, actor, now, reason))
    gates = [gate for each in rows for gate in closed_gates(each, to_the_end=to_the_end)]
    notes.append(pass_gates(gates, actor, overrides, reason))
    return "; ".join(filter(None, notes))


def _with_notes(reason: str, notes: str) -> str:
    return f"{reason} ({notes})" if notes else reason


def cover_freeze(rollout: Rollout, actor: Actor, now: datetime, reason: str) -> str:
    """Override the freezes that hold the rollout; return a note for the log.

    Raises:
        Invalid: the reason is empty.
        Forbidden: `actor` may not set such a freeze.
    """
    if not reason.strip():
        raise Invalid("required to override the freeze; it is logged.", field="reason")
    reach = freeze_reach(rollout.model, actor)
    freezes = open_freezes(rollout.model, now)
    require_reach(rollout.model, freezes, reach)
    rollout.freeze_override_role = reach.value
    rollout.save(update_fields=["freeze_override_role"])
    until = "; ".join(f"until {each.words}: {each.reason}" for each in freezes)
    return f"the freeze of {rollout.model.name} {until} was overridden by {actor.name}"


@transaction.atomic
def approve_step(
    *,
    rollout: Rollout,
    actor: Actor,
    now: datetime,
    reason: str = "",
    revision: int | None = None,
    overrides: Collection[str] = (),
) -> Rollout:
    """Open the gate of the current step, which passes once its checks pass.

    Raises:
        Conflict: it is not baking, its step has no gate, or the gate is open already.
        Forbidden: `actor` lacks the role of the gate or started the rollout.
        Invalid: the gate is overridden without a reason.
    """
    row = lock_rollout(rollout, revision)
    if row.phase != Phase.BAKING:
        raise Conflict(f"The rollout is {row.phase}; a step can be approved only while it bakes")
    if gate_role(row) is None:
        raise Conflict(f"Step {row.step_index + 1} has no gate; it needs no approval")
    if row.approved_step == row.step_index:
        raise Conflict(f"Step {row.step_index + 1} was already approved by {row.approved_by}")
    gates = closed_gates(row)
    notes = pass_gates(gates, actor, read_overrides(overrides), reason)
    forced = notes if not all(gate.opens_for(actor) for gate in gates) else ""
    set_phase(
        row,
        Phase.BAKING,
        _with_notes(reason or f"step {row.step_index + 1} approved", forced),
        actor,
        now,
        approved_step=row.step_index,
        approved_by=actor.name,
    )
    audit_rollout(row, "step_approved", actor, row.phase)
    return row


@transaction.atomic
def override_freeze(
    *, rollout: Rollout, actor: Actor, now: datetime, reason: str = "", revision: int | None = None
) -> Rollout:
    """Override the freezes that hold a rollout, and the others of its release, now.

    Raises:
        Conflict: it has ended, or no freeze holds it.
        Invalid: the reason is empty.
        Forbidden: `actor` may not set such a freeze.
    """
    row = lock_rollout(rollout, revision)
    held = [each for each in (row, *companions(row)) if holding_freeze(each, now) is not None]
    if not row.is_live or not held:
        raise Conflict(f"No freeze holds the rollout: it is {row.phase} ({row.reason})")
    for each in held:
        if each is not row:
            require_operator(each, actor)
        note = cover_freeze(each, actor, now, reason)
        _record_override(each, _with_notes(reason, note), actor, now)
        audit_rollout(each, "freeze_overridden", actor, each.phase)
    return row


def _record_override(rollout: Rollout, reason: str, actor: Actor, now: datetime) -> None:
    """Log the override without a transition; the revision increases, so that pages reload."""
    rollout.revision += 1
    rollout.reason = reason
    rollout.save(update_fields=["revision", "reason"])
    append_note(rollout, "overrode a freeze", reason, actor, now)
