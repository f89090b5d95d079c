"""What a person does to a rollout on its way: pause, resume, skip, approve, promote, override."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from django.db import transaction

from apps.lib.actors import Actor
from apps.lib.errors import Conflict, Invalid
from apps.rollouts.freezes import open_freezes
from apps.rollouts.gates import gate_role, pass_gates, shut_gates
from apps.rollouts.models import Rollout
from apps.rollouts.overrides import (
    Override,
    freeze_reach,
    frozen,
    holding_freeze,
    read_overrides,
    require_reach,
)
from apps.rollouts.phases import append_note, companions, enter_step, move, switch_stable
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
    """Stop the clock of a baking rollout; its weight and its guardrails stay."""
    row = lock_rollout(rollout, revision)
    for each in move_together(row, {Phase.BAKING}, "paused", actor):
        move(each, Phase.PAUSED, reason or "paused by hand", actor, now)
        audit_rollout(each, "paused", actor, Phase.BAKING)
    return row


@transaction.atomic
def resume_rollout(
    *, rollout: Rollout, actor: Actor, now: datetime, reason: str = "", revision: int | None = None
) -> Rollout:
    """Let a paused rollout bake its step anew; the evidence so far stays.

    Of a release those that are paused go on.
    """
    row = lock_rollout(rollout, revision)
    if row.phase != Phase.PAUSED:
        raise Conflict(f"The rollout is {row.phase}; only a paused one can be resumed")
    for each in (row, *companions(row)):
        if each.phase == Phase.PAUSED:
            if each is not row:
                require_operator(each, actor)
            stopped = {"step_due_at": None, "step_limit_at": None, "next_check_at": None}
            move(each, Phase.BAKING, reason or "resumed by hand", actor, now, **stopped)
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
    """Make the target stable without waiting for the rest of the plan.

    Raises:
        Conflict: it is neither baking nor paused, or a freeze window is open.
        Forbidden: a gate on the way is not for `actor` to open.
        Invalid: what is overridden lacks a reason.
    """
    row = lock_rollout(rollout, revision)
    together = move_together(row, {Phase.BAKING, Phase.PAUSED}, "promoted", actor)
    said = _allow(together, actor, now, read_overrides(overrides), reason, to_the_end=True)
    for each in together:
        before = each.phase
        switch_stable(each, _with(reason or "promoted by hand", said), actor, now, None)
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
    """Go on to the next step without waiting for this one's checks.

    Raises:
        Conflict: it is neither baking nor paused, this is the last step (promote it now), or a
            freeze window is open.
        Forbidden: the step's gate is not for `actor` to open.
        Invalid: what is overridden lacks a reason.
    """
    row = lock_rollout(rollout, revision)
    together = move_together(row, {Phase.BAKING, Phase.PAUSED}, "taken to its next step", actor)
    for each in together:
        if each.step_index + 1 >= len(from_json(each.plan_document).steps):
            raise Conflict(f"{each.target} is at its last step: promote it now, or let it bake")
    said = _allow(together, actor, now, read_overrides(overrides), reason)
    for each in together:
        before = each.phase
        why = _with(reason or f"step {each.step_index + 1} skipped by hand", said)
        enter_step(each, each.step_index + 1, why, actor, now)
        audit_rollout(each, "step_skipped", actor, before)
    return row


def _allow(
    rows: Sequence[Rollout],
    actor: Actor,
    now: datetime,
    overrides: Collection[str],
    reason: str,
    *,
    to_the_end: bool = False,
) -> str:
    """See that neither freeze nor gate is in the way of any; return what the log has to say."""
    said = []
    for each in rows:
        if (freeze := holding_freeze(each, now)) is not None:
            if Override.FREEZE not in overrides:
                raise frozen(each.model, freeze)
            said.append(cover_freeze(each, actor, now, reason))
    gates = [gate for each in rows for gate in shut_gates(each, to_the_end=to_the_end)]
    said.append(pass_gates(gates, actor, overrides, reason))
    return "; ".join(filter(None, said))


def _with(reason: str, said: str) -> str:
    return f"{reason} ({said})" if said else reason


def cover_freeze(rollout: Rollout, actor: Actor, now: datetime, reason: str) -> str:
    """Let a rollout go on in the freezes that hold it; return what the log has to say of it.

    Raises:
        Invalid: there is no reason.
        Forbidden: `actor` may not set such a freeze.
    """
    if not reason.strip():
        raise Invalid("reason: say why the freeze is overridden; the log keeps it.")
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
    """Open the gate of the present step; it passes once its checks do.

    Raises:
        Conflict: it is not baking, its step has no gate for a person, or somebody opened it.
        Forbidden: the gate is not for `actor` to open, who lacks its role or started the rollout.
        Invalid: the gate is overridden without a reason.
    """
    row = lock_rollout(rollout, revision)
    if row.phase != Phase.BAKING:
        raise Conflict(f"The rollout is {row.phase}; only a step that bakes can be approved")
    if gate_role(row) is None:
        raise Conflict(f"Step {row.step_index + 1} opens by itself; nobody has to approve it")
    if row.approved_step == row.step_index:
        raise Conflict(f"Step {row.step_index + 1} was approved already by {row.approved_by}")
    gates = shut_gates(row)
    said = pass_gates(gates, actor, read_overrides(overrides), reason)
    forced = said if not all(gate.opens_for(actor) for gate in gates) else ""
    move(
        row,
        Phase.BAKING,
        _with(reason or f"step {row.step_index + 1} approved", forced),
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
    """Let a rollout, and those of its release, go on in the freezes that hold them now.

    Raises:
        Conflict: it has ended, or no freeze holds it.
        Invalid: there is no reason.
        Forbidden: `actor` may not set such a freeze.
    """
    row = lock_rollout(rollout, revision)
    held = [each for each in (row, *companions(row)) if holding_freeze(each, now) is not None]
    if not row.is_live or not held:
        raise Conflict(f"No freeze holds the rollout: it is {row.phase} ({row.reason})")
    for each in held:
        if each is not row:
            require_operator(each, actor)
        said = cover_freeze(each, actor, now, reason)
        _note(each, _with(reason, said), actor, now)
        audit_rollout(each, "freeze_overridden", actor, each.phase)
    return row


def _note(rollout: Rollout, reason: str, actor: Actor, now: datetime) -> None:
    """Write into the log what changes no phase; the page's revision grows with it."""
    rollout.revision += 1
    rollout.reason = reason
    rollout.save(update_fields=["revision", "reason"])
    append_note(rollout, "overrode a freeze", reason, actor, now)
