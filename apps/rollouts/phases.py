"""The moves of a rollout: each one transition, its row, and the table that it makes, together.

Every function here runs inside the caller's transaction. The external effect (waking data planes)
happens on commit, in `publication`; nothing here waits for anything.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import msgspec

from apps.lib.actors import Actor
from apps.lib.transitions import compare_and_set
from apps.models.models import Alias, ModelVersion
from apps.models.registry import CHAMPION
from apps.models.services import release_split, route_split
from apps.rollouts.models import Rollout, RolloutEvent
from apps.rollouts.plans import from_json
from apps.rollouts.publication import publish_table
from apps.rollouts.states import PHASE_TRANSITIONS, Phase
from contract.routing import CanarySplit

ROLLBACK_WINDOW = timedelta(hours=24)


def move(
    rollout: Rollout,
    phase: Phase,
    reason: str,
    actor: Actor,
    now: datetime,
    evidence: dict[str, Any] | None = None,
    **changes: Any,
) -> None:
    """Make one legal transition by compare-and-set and append its row.

    Raises:
        Conflict: the transition is not legal, or somebody else was faster.
    """
    old = Phase(rollout.phase)
    PHASE_TRANSITIONS.check(f"rollout of {rollout.target}", old, phase)
    if phase in PHASE_TRANSITIONS.final:
        changes["ended_at"] = now
    compare_and_set(rollout, state_field="phase", phase=phase.value, reason=reason, **changes)
    RolloutEvent.objects.create(
        rollout=rollout,
        from_state=old,
        to_state=phase,
        reason=reason,
        actor=actor.name,
        evidence=evidence or {},
        at=now,
        step_index=rollout.step_index,
        weight_bp=rollout.weight_bp,
        generation=rollout.generation,
    )


def enter_step(rollout: Rollout, index: int, reason: str, actor: Actor, now: datetime) -> None:
    """Give the canary the share of step `index`; its clock starts when all instances acked."""
    plan = from_json(rollout.plan_document)
    weight_bp = plan.steps[index].weight_bp
    split = CanarySplit(
        id=str(rollout.pk),
        salt=rollout.salt,
        version=str(rollout.target.number),
        weight_bp=weight_bp,
        interval_s=plan.interval_s,
    )
    route_split(owner_id=rollout.pk, document=msgspec.to_builtins(split))
    generation = publish_table(
        reason=f"{rollout.target} at {weight_bp / 100:g} %", actor=actor, now=now
    )
    move(
        rollout,
        Phase.BAKING,
        reason,
        actor,
        now,
        step_index=index,
        weight_bp=weight_bp,
        generation=generation,
        step_generations=[*rollout.step_generations, generation],
        step_started_at=None,
        step_due_at=None,
        step_limit_at=None,
        next_check_at=None,
    )


def switch_stable(
    rollout: Rollout, reason: str, actor: Actor, now: datetime, evidence: dict[str, Any] | None
) -> None:
    """Make the target stable: one pointer, one table; the version before stays loaded."""
    # What was rolled back from is not a version to go back to.
    is_rollback = rollout.kind == Rollout.Kind.ROLLBACK
    previous = None if is_rollback else rollout.baseline
    _point_stable(rollout, rollout.target, previous=previous, now=now)
    release_split(owner_id=rollout.pk)
    generation = publish_table(reason=f"{rollout.target} is stable", actor=actor, now=now)
    move(
        rollout,
        Phase.PROMOTING,
        reason,
        actor,
        now,
        evidence=evidence,
        weight_bp=10_000,
        generation=generation,
    )


def roll_back(
    rollout: Rollout,
    reason: str,
    actor: Actor,
    now: datetime,
    evidence: dict[str, Any] | None = None,
) -> None:
    """Take all traffic off the target in this transaction, from whatever live phase it is in."""
    if rollout.phase == Phase.PROMOTING:
        _point_stable(rollout, rollout.baseline, previous=None, now=now)
    release_split(owner_id=rollout.pk)
    generation = publish_table(reason=f"{rollout.target} rolled back", actor=actor, now=now)
    move(
        rollout,
        Phase.ROLLING_BACK,
        reason,
        actor,
        now,
        evidence=evidence,
        weight_bp=0,
        generation=generation,
    )


def _point_stable(
    rollout: Rollout, stable: ModelVersion | None, previous: ModelVersion | None, now: datetime
) -> None:
    model = rollout.model
    model.stable = stable
    model.previous_stable = previous
    model.rollback_until = now + ROLLBACK_WINDOW if previous else None
    model.save(update_fields=["stable", "previous_stable", "rollback_until"])
    if stable is None:
        Alias.objects.filter(model=model, name=CHAMPION).delete()
    else:
        Alias.objects.update_or_create(model=model, name=CHAMPION, defaults={"version": stable})
