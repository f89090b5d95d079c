"""Public writes on rollouts. Each is one transaction; a refusal says why and changes nothing.

`revision` is what the caller last saw: a stale one is a Conflict, so that nobody acts on a page
that has moved on. `None` acts on whatever is there.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from django.db import IntegrityError, transaction

from apps.lib.actors import Actor
from apps.lib.errors import Conflict, Invalid
from apps.models.audit import record_audit
from apps.models.models import LiveSplit, ModelVersion, RegisteredModel, Role
from apps.models.services import acquire_split, deploy_version
from apps.rollouts.models import Plan, Release, Rollout, RolloutEvent
from apps.rollouts.overrides import (
    needed_overrides,
    read_overrides,
    require_not_frozen,
    require_not_quarantined,
    require_signature,
)
from apps.rollouts.phases import companions, enter_step, move, roll_back, switch_stable, tell
from apps.rollouts.plans import PlanDocument, check_plan, document_of, from_json, to_json
from apps.rollouts.publication import unacked
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
            override does not exist.
    """
    model = RegisteredModel.objects.select_for_update(of=("self",)).get(pk=model.pk)
    asked = read_overrides(overrides)
    _check_target(model, target)
    require_not_frozen(model, asked, now)
    require_not_quarantined(target, asked)
    asked = needed_overrides(asked, model, target)
    draft = Draft(model, target, actor, now, overrides=asked, retry_of=retry_of, release=release)
    if model.stable is None:
        return _create(Rollout.Kind.FIRST, draft)
    if require_signature(model.stable, target, asked):
        return _create(Rollout.Kind.SWITCH, draft)
    plan = plan or default_plan()
    document = document_of(plan)
    check_plan(document)
    return _create(Rollout.Kind.CANARY, replace(draft, plan=plan, document=document.as_followed()))


def default_plan() -> Plan:
    """Return the plan that is used when none is named. Raises Invalid when there is none."""
    plan = Plan.objects.filter(is_default=True).first()
    if plan is None:
        raise Invalid("No plan is the default one: name a plan.")
    return plan


@transaction.atomic
def retry_rollout(
    *, rollout: Rollout, actor: Actor, now: datetime, overrides: Collection[str] = ()
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
    return list(ModelVersion.objects.filter(pk__in=known).select_related("model"))


def _check_earlier(model: RegisteredModel, target: ModelVersion) -> None:
    if target.model_id != model.pk:
        raise Invalid(f"{target} is not a version of {model.name}")
    if target.pk == model.stable_id:
        raise Invalid(f"{target} is the stable version already")
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
    RolloutEvent.objects.create(
        rollout=rollout,
        from_state="",
        to_state=Phase.PENDING,
        reason=told,
        actor=actor.name,
        at=draft.now,
        step_index=-1,
        weight_bp=0,
    )
    _audit(rollout, "started", actor)
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


def _locked(rollout: Rollout, revision: int | None) -> Rollout:
    """Return the row, locked. Raises Conflict when it is not what the caller saw."""
    rows = Rollout.objects.select_for_update(of=("self",))
    if rollout.release_id is not None:
        # All of a release, always in this order, so that two people never wait for each other.
        list(rows.filter(release=rollout.release_id).order_by("pk"))
    row = rows.select_related("model", "target__model", "baseline__model").get(pk=rollout.pk)
    if revision is not None and row.revision != revision:
        raise Conflict(
            f"The rollout has moved on meanwhile: it is {row.phase} ({row.reason})",
            revision=row.revision,
            phase=row.phase,
        )
    return row


def _together(row: Rollout, phases: Collection[Phase], done: str) -> list[Rollout]:
    """Return the row with the others of its release. Raises Conflict unless all may be acted on."""
    rows = [row, *companions(row)]
    for each in rows:
        if each.phase not in phases:
            allowed = " or ".join(sorted(phases))
            who = "The rollout" if each is row else f"{each.target} of the same release"
            raise Conflict(f"{who} is {each.phase}; only a {allowed} one can be {done}")
    return rows


def _audit(rollout: Rollout, action: str, actor: Actor, before: str = "") -> None:
    record_audit(
        actor=actor,
        action=f"rollout.{action}",
        target=f"{rollout.target} ({rollout.pk})",
        before={"phase": before} if before else {},
        after={"phase": str(rollout.phase), "weight_bp": rollout.weight_bp},
    )


@transaction.atomic
def pause_rollout(
    *, rollout: Rollout, actor: Actor, now: datetime, reason: str = "", revision: int | None = None
) -> Rollout:
    """Stop the clock of a baking rollout; its weight and its guardrails stay."""
    row = _locked(rollout, revision)
    for each in _together(row, {Phase.BAKING}, "paused"):
        move(each, Phase.PAUSED, reason or "paused by hand", actor, now)
        _audit(each, "paused", actor, Phase.BAKING)
    return row


@transaction.atomic
def resume_rollout(
    *, rollout: Rollout, actor: Actor, now: datetime, reason: str = "", revision: int | None = None
) -> Rollout:
    """Let a paused rollout bake its step anew; the evidence so far stays.

    Of a release those that are paused go on.
    """
    row = _locked(rollout, revision)
    if row.phase != Phase.PAUSED:
        raise Conflict(f"The rollout is {row.phase}; only a paused one can be resumed")
    for each in (row, *companions(row)):
        if each.phase == Phase.PAUSED:
            stopped = {"step_due_at": None, "step_limit_at": None, "next_check_at": None}
            move(each, Phase.BAKING, reason or "resumed by hand", actor, now, **stopped)
            _audit(each, "resumed", actor, Phase.PAUSED)
    return row


@transaction.atomic
def abort_rollout(
    *, rollout: Rollout, actor: Actor, now: datetime, reason: str = "", revision: int | None = None
) -> Rollout:
    """Take all traffic off the target, now, from every live phase. Needs no worker.

    Raises:
        Conflict: it has ended already; a model that succeeded is rolled back by `rollback_model`.
    """
    row = _locked(rollout, revision)
    if row.phase == Phase.ROLLING_BACK:
        return row
    if not row.is_live:
        raise Conflict(f"The rollout has ended already: {row.phase} ({row.reason})")
    before = row.phase
    roll_back(row, reason or "aborted by hand", actor, now)
    _audit(row, "aborted", actor, before)
    return row


@transaction.atomic
def promote_now(
    *, rollout: Rollout, actor: Actor, now: datetime, reason: str = "", revision: int | None = None
) -> Rollout:
    """Make the target stable without waiting for the rest of the plan.

    Raises:
        Conflict: it is neither baking nor paused, or a freeze window is open that was not
            overridden when it was started.
    """
    row = _locked(rollout, revision)
    for each in _together(row, {Phase.BAKING, Phase.PAUSED}, "promoted"):
        require_not_frozen(each.model, each.overrides, now)
        before = each.phase
        switch_stable(each, reason or "promoted by hand", actor, now, None)
        _audit(each, "promoted", actor, before)
    return row


@transaction.atomic
def skip_step(
    *, rollout: Rollout, actor: Actor, now: datetime, reason: str = "", revision: int | None = None
) -> Rollout:
    """Go on to the next step without waiting for this one's checks.

    Raises:
        Conflict: it is neither baking nor paused, this is the last step (promote it now), or a
            freeze window is open that was not overridden when it was started.
    """
    row = _locked(rollout, revision)
    together = _together(row, {Phase.BAKING, Phase.PAUSED}, "taken to its next step")
    for each in together:
        require_not_frozen(each.model, each.overrides, now)
        if each.step_index + 1 >= len(from_json(each.plan_document).steps):
            raise Conflict(f"{each.target} is at its last step: promote it now, or let it bake")
    for each in together:
        before = each.phase
        told = reason or f"step {each.step_index + 1} skipped by hand"
        enter_step(each, each.step_index + 1, told, actor, now)
        _audit(each, "step_skipped", actor, before)
    return row


@transaction.atomic
def approve_step(
    *, rollout: Rollout, actor: Actor, now: datetime, reason: str = "", revision: int | None = None
) -> Rollout:
    """Open the gate of the present step; it passes once its checks do.

    The caller has made sure that `actor` has the role `gate_role(rollout)` on the model.

    Raises:
        Conflict: it is not baking, its step has no gate for a person, or somebody opened it.
    """
    row = _locked(rollout, revision)
    if row.phase != Phase.BAKING:
        raise Conflict(f"The rollout is {row.phase}; only a step that bakes can be approved")
    if gate_role(row) is None:
        raise Conflict(f"Step {row.step_index + 1} opens by itself; nobody has to approve it")
    if row.approved_step == row.step_index:
        raise Conflict(f"Step {row.step_index + 1} was approved already by {row.approved_by}")
    move(
        row,
        Phase.BAKING,
        reason or f"step {row.step_index + 1} approved",
        actor,
        now,
        approved_step=row.step_index,
        approved_by=actor.name,
    )
    _audit(row, "step_approved", actor, row.phase)
    return row


def gate_role(rollout: Rollout) -> Role | None:
    """Return the role that may open the gate of the present step; None when it has none."""
    if rollout.step_index < 0 or not rollout.plan_document:
        return None
    step = from_json(rollout.plan_document).steps[rollout.step_index]
    return Role(step.gate_role) if step.gate == "person" else None
