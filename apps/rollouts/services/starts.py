"""Starts of rollouts: by a plan, as a retry, or as an instant rollback."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from django.db import IntegrityError, transaction

from apps.lib.actors import Actor
from apps.lib.errors import Conflict, Invalid
from apps.models.archivable import require_active
from apps.models.models import LiveSplit, ModelVersion, RegisteredModel
from apps.models.services import acquire_split, deploy_version
from apps.rollouts.fleet_status import unacked
from apps.rollouts.gates import gates_of_plan, pass_gates
from apps.rollouts.models import Plan, Release, Rollout
from apps.rollouts.overrides import (
    Override,
    freeze_reach,
    needed_overrides,
    read_overrides,
    require_not_quarantined,
    require_signature,
    require_start,
)
from apps.rollouts.phases import append_event, enqueue_event, set_phase
from apps.rollouts.plans import PlanDocument, check_plan, document_of, to_json
from apps.rollouts.services.locked_rows import audit_rollout
from apps.rollouts.states import LIVE_PHASES, Phase
from apps.rollouts.tick import tick_one


@transaction.atomic
def start_rollout(
    *,
    model: RegisteredModel,
    target: ModelVersion,
    plan: Plan | None = None,
    actor: Actor,
    now: datetime,
    overrides: Collection[str] = (),
    reason: str = "",
    retry_of: Rollout | None = None,
    release: Release | None = None,
) -> Rollout:
    """Start a rollout to `target`, by `plan` or the default plan.

    The first version of a model has no control: it becomes stable as soon as it is warm. The same
    applies, with an override, to a target with another signature than stable, as the two cannot
    share traffic. `overrides` are values of `apps.rollouts.overrides.Override`.

    Raises:
        Conflict: the model has a live rollout or experiment, is frozen, or the target is in
            quarantine.
        Invalid: the target is already stable, belongs to another model or has another signature;
            or an override is unknown or has no reason.
        Forbidden: `actor` lacks the role for an override.
    """
    model = RegisteredModel.objects.select_for_update(of=("self",)).get(pk=model.pk)
    requested = read_overrides(overrides)
    _check_target(model, target)
    require_start(model, requested, actor, now)
    require_not_quarantined(target, requested)
    needed = needed_overrides(requested, model, target)
    more: dict[str, Any] = {
        "reason": reason,
        "overrides": needed,
        "retry_of": retry_of,
        "release": release,
    }
    draft = Draft(model, target, actor, now, **more)
    if model.stable is None:
        return _create(Rollout.Kind.FIRST, draft)
    if require_signature(model.stable, target, needed):
        return _create(Rollout.Kind.SWITCH, _pass_all_gates(draft, plan, requested))
    plan = plan or default_plan()
    document = document_of(plan)
    check_plan(document)
    return _create(Rollout.Kind.CANARY, replace(draft, plan=plan, document=document.as_followed()))


def _pass_all_gates(draft: Draft, plan: Plan | None, overrides: Collection[str]) -> Draft:
    """Return the draft of a switch, which skips all steps and therefore passes all gates."""
    plan = plan or Plan.objects.filter(is_default=True).first()
    if plan is None:
        return draft
    document = document_of(plan)
    # No starter is excluded: a person who may open the gates may switch past them.
    gates = gates_of_plan(document, draft.model, "", range(len(document.steps)))
    notes = pass_gates(gates, draft.actor, overrides, draft.reason)
    return replace(draft, reason="; ".join(filter(None, [draft.reason, notes])))


def default_plan() -> Plan:
    """Return the default plan. Raises Invalid when there is none."""
    plan = Plan.objects.filter(is_default=True).first()
    if plan is None:
        raise Invalid("There is no default plan; name a plan.")
    return plan


@transaction.atomic
def retry_rollout(
    *,
    rollout: Rollout,
    actor: Actor,
    now: datetime,
    overrides: Collection[str] = (),
    reason: str = "",
) -> Rollout:
    """Start a rollout to the same target, by the plan as it is now.

    Raises:
        Conflict: the old rollout is live or succeeded, or `start_rollout` raises it.
    """
    if rollout.is_live or rollout.phase == Phase.SUCCEEDED:
        raise Conflict(
            f"The rollout is {rollout.phase}; only an unsuccessful rollout can be retried"
        )
    return start_rollout(
        model=rollout.model,
        target=rollout.target,
        plan=rollout.plan,
        actor=actor,
        now=now,
        overrides=overrides,
        reason=reason,
        retry_of=rollout,
    )


@transaction.atomic
def rollback_model(
    *,
    model: RegisteredModel,
    actor: Actor,
    now: datetime,
    reason: str = "",
    to: ModelVersion | None = None,
    overrides: Collection[str] = (),
) -> Rollout:
    """Make an earlier stable version stable again, at once and without steps.

    The default is the previous version, which is still loaded: the table is published in this
    transaction and needs no worker. An older version is loaded first.

    Raises:
        Conflict: there is no previous version, `to` is in quarantine, or a rollout or experiment is
            live (abort it first).
        Invalid: `to` was never stable, or is stable now.
    """
    model = RegisteredModel.objects.select_for_update(of=("self",)).get(pk=model.pk)
    target = to or model.previous_stable
    if target is None:
        raise Conflict(f"{model.name} has no previous stable version")
    requested = read_overrides(overrides)
    if to is not None:
        _check_earlier(model, to)
    if target.pk != model.previous_stable_id:
        require_not_quarantined(target, requested)
    needed = needed_overrides(requested, model, target)
    draft = Draft(model, target, actor, now, reason=reason, overrides=needed)
    rollout = _create(Rollout.Kind.ROLLBACK, draft)
    deploy_version(version=target, actor=actor, now=now)
    set_phase(rollout, Phase.PREPARING, rollout.reason, actor, now)
    tick_one(rollout.pk)
    rollout.refresh_from_db()
    return rollout


def earlier_versions(model: RegisteredModel) -> list[ModelVersion]:
    """Return the active versions that were stable before, except the stable one."""
    succeeded = Rollout.objects.filter(model=model, phase=Phase.SUCCEEDED)
    started_from = Rollout.objects.filter(model=model).exclude(baseline=None)
    known = {*succeeded.values_list("target_id", flat=True)}
    known.update(started_from.values_list("baseline_id", flat=True))
    known.discard(model.stable_id)
    return list(ModelVersion.objects.active().filter(pk__in=known).select_related("model"))


def _check_earlier(model: RegisteredModel, target: ModelVersion) -> None:
    if target.model_id != model.pk:
        raise Invalid(f"{target} is not a version of {model.name}")
    if target.pk == model.stable_id:
        raise Invalid(f"{target} is already the stable version")
    require_active([target])
    earlier = earlier_versions(model)
    if target not in earlier:
        known = ", ".join(str(version.number) for version in earlier) or "none"
        raise Invalid(
            f"{target} was never stable; promote it by a plan instead. Earlier stable versions: "
            f"{known}"
        )


def _check_target(model: RegisteredModel, target: ModelVersion) -> None:
    if target.model_id != model.pk:
        raise Invalid(f"{target} is not a version of {model.name}")
    if target.pk == model.stable_id:
        raise Invalid(f"{target} is already the stable version")
    require_active([target])


@dataclass(frozen=True)
class Draft:
    """The input of a new rollout. `document` is the plan with holdback and final bake."""

    model: RegisteredModel
    target: ModelVersion
    actor: Actor
    now: datetime
    plan: Plan | None = None
    document: PlanDocument | None = None
    reason: str = ""
    overrides: Sequence[str] = ()
    retry_of: Rollout | None = None
    release: Release | None = None


def _create(kind: Rollout.Kind, draft: Draft) -> Rollout:
    model, target, actor = draft.model, draft.target, draft.actor
    live = Rollout.objects.filter(model=model, phase__in=LIVE_PHASES).first()
    if live is not None and not _conclude(live, actor, draft.now):
        raise Conflict(
            f"{model.name} already has a live rollout to version {live.target.number}; "
            "abort it or let it end",
            rollout=str(live.pk),
        )
    reason = draft.reason or f"{kind.label.lower()} of {target} started"
    if draft.overrides:
        reason += f" (overridden: {', '.join(draft.overrides)})"
    try:
        with transaction.atomic():
            rollout = Rollout.objects.create(
                kind=kind,
                model=model,
                target=target,
                baseline=model.stable,
                plan=draft.plan,
                plan_document=to_json(draft.document) if draft.document else {},
                salt=secrets.token_hex(8),
                overrides=list(draft.overrides),
                freeze_override_role=(
                    freeze_reach(model, actor).value if Override.FREEZE in draft.overrides else ""
                ),
                retry_of=draft.retry_of,
                release=draft.release,
                reason=reason,
                started_by=actor.name,
                started_at=draft.now,
            )
    except IntegrityError:
        raise Conflict(f"{model.name} already has a live rollout") from None
    held = [version for version in (target, model.stable) if version is not None]
    acquire_split(model=model, kind=LiveSplit.Kind.CANARY, owner_id=rollout.pk, versions=held)
    append_event(rollout, reason, actor, draft.now, from_state="", evidence={})
    audit_rollout(rollout, "started", actor)
    enqueue_event(rollout, "rollout.started", actor, draft.now)
    return rollout


def _conclude(rollout: Rollout, actor: Actor, now: datetime) -> bool:
    """End a rollout in `rolling_back`, which only waits for acks; return whether it ended.

    Its table is published, and no step of a new rollout begins before all acks, so that a start or
    rollback need not wait for them. False in another phase, or when a tick holds the row.
    """
    rows = Rollout.objects.select_for_update(of=("self",), skip_locked=True)
    row = rows.filter(pk=rollout.pk, phase=Phase.ROLLING_BACK).select_related("target__model")
    held = row.first()
    if held is None:
        return False
    behind = [f"{name} {reason}" for name, reason in unacked(held.generation or 0, now)]
    reason = f"{held.reason} (not waited for: {'; '.join(behind)})" if behind else held.reason
    set_phase(held, Phase.ROLLED_BACK, reason, actor, now)
    return True
