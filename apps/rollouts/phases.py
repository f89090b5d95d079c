"""Transitions of rollouts: each changes the row, appends an event and publishes the table.

Every function runs inside the caller's transaction and never blocks. The external effect (waking
data planes) happens on commit, in `publication`.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import msgspec

from apps.lib.actors import Actor
from apps.lib.transitions import compare_and_set
from apps.models.models import Alias, ModelVersion, RegisteredModel
from apps.models.registry import CHAMPION
from apps.models.services import release_split, route_split
from apps.notifications.outbox import enqueue
from apps.rollouts.models import Quarantine, Rollout, RolloutEvent
from apps.rollouts.plans import WHOLE_BP, PlanDocument, from_json
from apps.rollouts.publication import publish_table
from apps.rollouts.reasons import ReasonLike, reason_of
from apps.rollouts.states import LIVE_PHASES, PHASE_TRANSITIONS, Phase
from contract.routing import CanarySplit, Shadow

# For an instant rollback or a first version, which have no plan.
ROLLBACK_WINDOW = timedelta(hours=24)


def set_phase(
    rollout: Rollout,
    phase: Phase,
    reason: ReasonLike,
    actor: Actor,
    now: datetime,
    evidence: dict[str, Any] | None = None,
    **changes: Any,
) -> None:
    """Make one legal transition by compare-and-set, append its event and notify.

    Raises:
        Conflict: the transition is not legal, or the row changed at the same time.
    """
    old = Phase(rollout.phase)
    PHASE_TRANSITIONS.check(f"rollout of {rollout.target}", old, phase)
    if phase in PHASE_TRANSITIONS.final:
        changes["ended_at"] = now
    # A step that passed before a transition has to pass again after it.
    changes.setdefault("step_passed_at", None)
    text = reason_of(reason)
    changes |= {"reason": text.detail, "headline": text.headline}
    compare_and_set(rollout, state_field="phase", phase=phase.value, **changes)
    append_event(rollout, reason, actor, now, from_state=old, evidence=evidence or {})
    enqueue_event(rollout, f"rollout.{phase}", actor, now)


def append_note(
    rollout: Rollout, note: str, reason: ReasonLike, actor: Actor, now: datetime
) -> None:
    """Append an event without a transition; `note` describes it in the past tense."""
    evidence = {"note": note}
    append_event(rollout, reason, actor, now, from_state=Phase(rollout.phase), evidence=evidence)


def append_event(
    rollout: Rollout,
    reason: ReasonLike,
    actor: Actor,
    now: datetime,
    *,
    from_state: str,
    evidence: dict[str, Any],
) -> None:
    """Append an event with the current phase, step and share of the rollout."""
    text = reason_of(reason)
    RolloutEvent.objects.create(
        rollout=rollout,
        from_state=from_state,
        to_state=rollout.phase,
        reason=text.detail,
        headline=text.headline,
        actor=actor.name,
        evidence=evidence,
        at=now,
        step_index=rollout.step_index,
        weight_bp=rollout.weight_bp,
        generation=rollout.generation,
    )


def enqueue_event(rollout: Rollout, event: str, actor: Actor, now: datetime) -> None:
    """Notify the subscribers of `event`, if this transaction commits."""
    enqueue(
        event=event,
        model=rollout.model,
        payload={
            "rollout": str(rollout.pk),
            "target": str(rollout.target),
            "phase": str(rollout.phase),
            "step_index": rollout.step_index,
            "weight_bp": rollout.weight_bp,
            "headline": rollout.headline,
            "reason": rollout.reason,
            "actor": actor.name,
        },
        now=now,
    )


def enter_step(
    rollout: Rollout, index: int, reason: ReasonLike, actor: Actor, now: datetime
) -> None:
    """Set the split and shadow of step `index`; its clock starts when all instances acked."""
    plan = from_json(rollout.plan_document)
    weight_bp = plan.steps[index].weight_bp
    route_split(
        owner_id=rollout.pk,
        document=msgspec.to_builtins(_split_of(rollout, plan, index)),
        shadow=_shadow_of(rollout, plan, index),
    )
    # Windows belong to a step by their generation, even if two steps have the same split.
    generation = publish_table(
        reason=f"{rollout.target} at {weight_bp / 100:g} %",
        actor=actor,
        now=now,
        is_forced=True,
        model=str(rollout.model.name),
    )
    set_phase(
        rollout,
        Phase.BAKING,
        reason,
        actor,
        now,
        step_index=index,
        weight_bp=weight_bp,
        generation=generation,
        step_generations=[*rollout.step_generations, generation],
        **CLOCK_STOPPED,
    )


# The clock of a step starts when every live instance serves its table.
CLOCK_STOPPED: dict[str, None] = dict.fromkeys(
    ("step_started_at", "step_due_at", "step_limit_at", "next_check_at")
)


def _split_of(rollout: Rollout, plan: PlanDocument, index: int) -> CanarySplit:
    return CanarySplit(
        id=str(rollout.pk),
        salt=rollout.salt,
        version=str(rollout.target.number),
        weight_bp=plan.steps[index].weight_bp,
        baseline_bp=plan.baseline_of(index),
        interval_s=plan.interval_of(index),
        exposures=plan.needs_outcomes,
    )


def _shadow_of(rollout: Rollout, plan: PlanDocument, index: int) -> dict[str, Any]:
    share_bp = plan.steps[index].shadow_bp
    if not share_bp:
        return {}
    # A salt of its own: the copied units are independent of the canary units.
    shadow: dict[str, Any] = msgspec.to_builtins(
        Shadow(
            id=str(rollout.pk),
            salt=f"{rollout.salt}-shadow",
            version=str(rollout.target.number),
            share_bp=share_bp,
            pairs=plan.keeps_pairs,
        )
    )
    return shadow


def switch_stable(
    rollout: Rollout,
    reason: ReasonLike,
    actor: Actor,
    now: datetime,
    evidence: dict[str, Any] | None,
) -> None:
    """Make the target stable with one table; the previous version stays loaded."""
    _set_stable(rollout.model, rollout.target, _rollback_target_after(rollout, now))
    if rollout.kind == Rollout.Kind.ROLLBACK and rollout.baseline is not None:
        quarantine(rollout.baseline, rollout, reason, now)
    Quarantine.objects.filter(version=rollout.target).delete()
    release_split(owner_id=rollout.pk)
    generation = publish_table(
        reason=f"{rollout.target} is stable", actor=actor, now=now, model=str(rollout.model.name)
    )
    set_phase(
        rollout,
        Phase.PROMOTING,
        reason,
        actor,
        now,
        evidence=evidence,
        weight_bp=WHOLE_BP,
        generation=generation,
    )


def companions(rollout: Rollout) -> list[Rollout]:
    """Return the other live rollouts of the release, locked; none without a release.

    The caller holds the row of the rollout already, or has locked all rows in this order.
    """
    if rollout.release_id is None:
        return []
    rows = Rollout.objects.select_for_update(of=("self",)).exclude(pk=rollout.pk)
    live = rows.filter(release_id=rollout.release_id, phase__in=LIVE_PHASES)
    return list(live.select_related("model", "target__model", "baseline__model").order_by("pk"))


def roll_back(
    rollout: Rollout,
    reason: ReasonLike,
    actor: Actor,
    now: datetime,
    evidence: dict[str, Any] | None = None,
) -> None:
    """Take all traffic off the target in this transaction, in any live phase.

    The other models of a release are rolled back with it.
    """
    had_traffic = max(_weights_of(rollout), default=0) > 0
    # A failed check also quarantines a version that had shadow traffic only.
    if (had_traffic or evidence) and rollout.kind != Rollout.Kind.ROLLBACK:
        quarantine(rollout.target, rollout, reason, now)
    _remove_traffic(rollout, reason, actor, now, evidence)
    for other in companions(rollout):
        if other.phase != Phase.ROLLING_BACK:
            _remove_traffic(
                other, f"with {rollout.target} of the same release: {reason}", actor, now
            )


def _remove_traffic(
    rollout: Rollout,
    reason: ReasonLike,
    actor: Actor,
    now: datetime,
    evidence: dict[str, Any] | None = None,
) -> None:
    if rollout.phase == Phase.PROMOTING:
        _set_stable(rollout.model, rollout.baseline, _rollback_target_before(rollout))
        # An aborted rollback quarantines nothing.
        Quarantine.objects.filter(version=rollout.baseline, rollout=rollout).delete()
    release_split(owner_id=rollout.pk)
    generation = publish_table(
        reason=f"{rollout.target} rolled back", actor=actor, now=now, model=str(rollout.model.name)
    )
    set_phase(
        rollout,
        Phase.ROLLING_BACK,
        reason,
        actor,
        now,
        evidence=evidence,
        weight_bp=0,
        generation=generation,
    )


def _weights_of(rollout: Rollout) -> list[int]:
    """Return the shares of all steps so far, in basis points."""
    if not rollout.plan_document:
        return [WHOLE_BP] if rollout.phase == Phase.PROMOTING else []
    steps = from_json(rollout.plan_document).steps
    return [step.weight_bp for step in steps[: rollout.step_index + 1]]


def quarantine(version: ModelVersion, rollout: Rollout, reason: ReasonLike, now: datetime) -> None:
    """Require an override for the next rollout of `version`."""
    values = {"rollout": rollout, "reason": str(reason), "at": now}
    Quarantine.objects.update_or_create(version=version, defaults=values)


# The version that an instant rollback makes stable, and until when it stays loaded.
RollbackTarget = tuple[ModelVersion | None, datetime | None]


def _rollback_target_after(rollout: Rollout, promoted_at: datetime) -> RollbackTarget:
    """Return the baseline; nothing after a rollback, as its baseline is in quarantine."""
    if rollout.kind == Rollout.Kind.ROLLBACK or rollout.baseline is None:
        return None, None
    return rollout.baseline, promoted_at + _rollback_window(rollout)


def _rollback_target_before(rollout: Rollout) -> RollbackTarget:
    """Return the rollback target that the rollout which promoted the baseline had set."""
    earlier = Rollout.objects.filter(
        model=rollout.model, target=rollout.baseline, phase=Phase.SUCCEEDED
    )
    last = earlier.select_related("baseline__model").order_by("-ended_at").first()
    promotions = last.events.filter(to_state=Phase.PROMOTING) if last else None
    promotion = promotions.order_by("-id").first() if promotions is not None else None
    if last is None or promotion is None:
        return None, None
    return _rollback_target_after(last, promotion.at)


def _set_stable(
    model: RegisteredModel, stable: ModelVersion | None, rollback_target: RollbackTarget
) -> None:
    model.stable = stable
    model.previous_stable, model.rollback_until = rollback_target
    model.save(update_fields=["stable", "previous_stable", "rollback_until"])
    if stable is None:
        Alias.objects.filter(model=model, name=CHAMPION).delete()
    else:
        Alias.objects.update_or_create(model=model, name=CHAMPION, defaults={"version": stable})


def _rollback_window(rollout: Rollout) -> timedelta:
    if not rollout.plan_document:
        return ROLLBACK_WINDOW
    return timedelta(seconds=from_json(rollout.plan_document).rollback_window_s)
