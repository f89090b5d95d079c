"""Starting a rollout: by a plan, once more, or back to an earlier version."""

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
from apps.rollouts.phases import append_event, move, tell
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
    """Begin to make `target` stable, by `plan` or the default one.

    A model without a stable version has nothing to compare with: its first version is switched to
    as soon as it is warm. `overrides` are of `apps.rollouts.overrides.Override`; one that takes
    other tensors than stable is switched to as well, as the two cannot share traffic.

    Raises:
        Conflict: the model has a live rollout or experiment, is frozen, or the target is in
            quarantine.
        Invalid: the target is stable already, is of another model, takes other inputs, or an
            override does not exist or lacks a reason.
        Forbidden: an override is not for `actor`.
    """
    model = RegisteredModel.objects.select_for_update(of=("self",)).get(pk=model.pk)
    asked = read_overrides(overrides)
    _check_target(model, target)
    require_start(model, asked, actor, now)
    require_not_quarantined(target, asked)
    needed = needed_overrides(asked, model, target)
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
        return _create(Rollout.Kind.SWITCH, _past_gates(draft, plan, asked))
    plan = plan or default_plan()
    document = document_of(plan)
    check_plan(document)
    return _create(Rollout.Kind.CANARY, replace(draft, plan=plan, document=document.as_followed()))


def _past_gates(draft: Draft, plan: Plan | None, overrides: Collection[str]) -> Draft:
    """Return the draft of a switch, which leaves out the plan's steps and with them its gates."""
    plan = plan or Plan.objects.filter(is_default=True).first()
    if plan is None:
        return draft
    document = document_of(plan)
    # Nobody has started it yet: who may open the gates may switch past them.
    gates = gates_of_plan(document, draft.model, "", range(len(document.steps)))
    said = pass_gates(gates, draft.actor, overrides, draft.reason)
    return replace(draft, reason="; ".join(filter(None, [draft.reason, said])))


def default_plan() -> Plan:
    """Return the plan that is used when none is named. Raises Invalid when there is none."""
    plan = Plan.objects.filter(is_default=True).first()
    if plan is None:
        raise Invalid("No plan is the default one: name a plan.")
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
    """Start what ended without success once more: the same target, by the plan as it is now.

    Raises:
        Conflict: it is live or succeeded, and what `start_rollout` refuses.
    """
    if rollout.is_live or rollout.phase == Phase.SUCCEEDED:
        raise Conflict(f"The rollout is {rollout.phase}; only one that did not succeed is retried")
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

    Without `to` that is the version before, which is still loaded: then the table is published in
    this transaction, with no worker alive. An older one is loaded first.

    Raises:
        Conflict: there is no previous version, `to` is in quarantine, or a rollout or experiment is
            live (abort it first).
        Invalid: `to` was never stable, or is so now.
    """
    model = RegisteredModel.objects.select_for_update(of=("self",)).get(pk=model.pk)
    target = to or model.previous_stable
    if target is None:
        raise Conflict(f"{model.name} has no previous stable version to go back to")
    asked = read_overrides(overrides)
    if to is not None:
        _check_earlier(model, to)
    if target.pk != model.previous_stable_id:
        require_not_quarantined(target, asked)
    asked = needed_overrides(asked, model, target)
    draft = Draft(model, target, actor, now, reason=reason, overrides=asked)
    rollout = _create(Rollout.Kind.ROLLBACK, draft)
    deploy_version(version=target, actor=actor, now=now)
    move(rollout, Phase.PREPARING, rollout.reason, actor, now)
    tick_one(rollout.pk)
    rollout.refresh_from_db()
    return rollout


def earlier_versions(model: RegisteredModel) -> list[ModelVersion]:
    """Return the versions that were stable before and are not now, the highest number first."""
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
        raise Invalid(f"{target} is the stable version already")
    require_active([target])
    earlier = earlier_versions(model)
    if target not in earlier:
        known = ", ".join(str(version.number) for version in earlier) or "none"
        raise Invalid(
            f"{target} was never stable, so there is no going back to it; promote it by a plan. "
            f"Stable before were: {known}"
        )


def _check_target(model: RegisteredModel, target: ModelVersion) -> None:
    if target.model_id != model.pk:
        raise Invalid(f"{target} is not a version of {model.name}")
    if target.pk == model.stable_id:
        raise Invalid(f"{target} is the stable version already")
    require_active([target])


@dataclass(frozen=True)
class Draft:
    """What a rollout is made from. `document` is the plan as it will be followed."""

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
    told = draft.reason or f"{kind.label.lower()} of {target} started"
    if draft.overrides:
        told += f" (overridden: {', '.join(draft.overrides)})"
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
                reason=told,
                started_by=actor.name,
                started_at=draft.now,
            )
    except IntegrityError:
        raise Conflict(f"{model.name} already has a live rollout") from None
    held = [version for version in (target, model.stable) if version is not None]
    acquire_split(model=model, kind=LiveSplit.Kind.CANARY, owner_id=rollout.pk, versions=held)
    append_event(rollout, told, actor, draft.now, from_state="", evidence={})
    audit_rollout(rollout, "started", actor)
    tell(rollout, "rollout.started", actor, draft.now)
    return rollout


def _conclude(rollout: Rollout, actor: Actor, now: datetime) -> bool:
    """End a rollout that only waits for instances to say that they took its traffic back.

    Its table is published, and no step of a new one begins before they have; so nobody needs to
    wait for them to start or to roll back. False when it is in another phase, or in a tick's hands.
    """
    rows = Rollout.objects.select_for_update(of=("self",), skip_locked=True)
    row = rows.filter(pk=rollout.pk, phase=Phase.ROLLING_BACK).select_related("target__model")
    held = row.first()
    if held is None:
        return False
    behind = [f"{name} {why}" for name, why in unacked(held.generation or 0, now)]
    told = f"{held.reason} (not waited for: {'; '.join(behind)})" if behind else held.reason
    move(held, Phase.ROLLED_BACK, told, actor, now)
    return True
