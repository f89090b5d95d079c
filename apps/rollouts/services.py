"""Public writes on rollouts. Each is one transaction; a refusal says why and changes nothing.

`revision` is what the caller last saw: a stale one is a Conflict, so that nobody acts on a page
that has moved on. `None` acts on whatever is there.
"""

from __future__ import annotations

import secrets
from datetime import datetime

from django.db import IntegrityError, transaction

from apps.lib.actors import Actor
from apps.lib.errors import Conflict, Invalid
from apps.models.audit import record_audit
from apps.models.models import LiveSplit, ModelVersion, RegisteredModel
from apps.models.services import acquire_split, deploy_version
from apps.rollouts.models import Plan, Rollout, RolloutEvent
from apps.rollouts.phases import move, roll_back, switch_stable
from apps.rollouts.plans import PlanDocument, check_plan, document_of, from_json, to_json
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
) -> Rollout:
    """Begin to make `target` stable, by `plan` or the default one.

    A model without a stable version has nothing to compare with: its first version is switched to
    as soon as it is warm.

    Raises:
        Conflict: the model has a live rollout or experiment.
        Invalid: the target is stable already, is of another model, or takes other inputs.
    """
    model = RegisteredModel.objects.select_for_update(of=("self",)).get(pk=model.pk)
    _check_target(model, target)
    if model.stable is None:
        return _create(Rollout.Kind.FIRST, model, target, None, None, actor, now)
    plan = plan or default_plan()
    document = document_of(plan)
    check_plan(document)
    return _create(Rollout.Kind.CANARY, model, target, plan, document, actor, now)


def default_plan() -> Plan:
    """Return the plan that is used when none is named. Raises Invalid when there is none."""
    plan = Plan.objects.filter(is_default=True).first()
    if plan is None:
        raise Invalid("No plan is the default one: name a plan.")
    return plan


@transaction.atomic
def rollback_model(
    *, model: RegisteredModel, actor: Actor, now: datetime, reason: str = ""
) -> Rollout:
    """Make the previous stable version stable again, at once and without steps.

    It is still loaded, so the table is published in this transaction, with no worker alive.

    Raises:
        Conflict: there is no previous version, or a rollout or experiment is live (abort it first).
    """
    model = RegisteredModel.objects.select_for_update(of=("self",)).get(pk=model.pk)
    if model.previous_stable is None:
        raise Conflict(f"{model.name} has no previous stable version to go back to")
    target = model.previous_stable
    rollout = _create(Rollout.Kind.ROLLBACK, model, target, None, None, actor, now, reason)
    deploy_version(version=target, actor=actor, now=now)
    move(rollout, Phase.PREPARING, rollout.reason, actor, now)
    tick_one(rollout.pk)
    rollout.refresh_from_db()
    return rollout


def _check_target(model: RegisteredModel, target: ModelVersion) -> None:
    if target.model_id != model.pk:
        raise Invalid(f"{target} is not a version of {model.name}")
    if model.stable is None:
        return
    if target.pk == model.stable.pk:
        raise Invalid(f"{target} is the stable version already")
    difference = signature_difference(model.stable, target)
    if difference:
        raise Invalid(
            f"{target} does not fit the requests that {model.stable} gets: {difference[0]}",
            difference=difference,
        )


def signature_difference(stable: ModelVersion, target: ModelVersion) -> list[str]:
    """Return in words how the signatures differ; an empty list when they are the same."""
    found = []
    for side in ("inputs", "outputs"):
        old = {item["name"]: item for item in stable.signature[side]}
        new = {item["name"]: item for item in target.signature[side]}
        found += [f"{side[:-1]} {name!r} is missing" for name in old if name not in new]
        found += [f"{side[:-1]} {name!r} is new" for name in new if name not in old]
        for name in old.keys() & new.keys():
            before, after = (f"{t['datatype']} {t['shape']}" for t in (old[name], new[name]))
            if before != after:
                found.append(f"{side[:-1]} {name!r} was {before} and is {after}")
    if stable.batched != target.batched:
        found.append("one of them has a batch dimension and the other has none")
    return sorted(found)


def _create(
    kind: Rollout.Kind,
    model: RegisteredModel,
    target: ModelVersion,
    plan: Plan | None,
    document: PlanDocument | None,
    actor: Actor,
    now: datetime,
    reason: str = "",
) -> Rollout:
    live = Rollout.objects.filter(model=model, phase__in=LIVE_PHASES).first()
    if live is not None:
        raise Conflict(
            f"{model.name} already has a live rollout to version {live.target.number}; "
            "abort it or let it end",
            rollout=str(live.pk),
        )
    told = reason or f"{kind.label.lower()} of {target} started"
    try:
        with transaction.atomic():
            rollout = Rollout.objects.create(
                kind=kind,
                model=model,
                target=target,
                baseline=model.stable,
                plan=plan,
                plan_document=to_json(document) if document else {},
                salt=secrets.token_hex(8),
                reason=told,
                started_by=actor.name,
                started_at=now,
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
        at=now,
        step_index=-1,
        weight_bp=0,
    )
    _audit(rollout, "started", actor)
    return rollout


def _locked(rollout: Rollout, revision: int | None) -> Rollout:
    """Return the row, locked. Raises Conflict when it is not what the caller saw."""
    row = (
        Rollout.objects.select_for_update(of=("self",))
        .select_related("model", "target__model", "baseline__model")
        .get(pk=rollout.pk)
    )
    if revision is not None and row.revision != revision:
        raise Conflict(
            f"The rollout has moved on meanwhile: it is {row.phase} ({row.reason})",
            revision=row.revision,
            phase=row.phase,
        )
    return row


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
    before = row.phase
    move(row, Phase.PAUSED, reason or "paused by hand", actor, now)
    _audit(row, "paused", actor, before)
    return row


@transaction.atomic
def resume_rollout(
    *, rollout: Rollout, actor: Actor, now: datetime, reason: str = "", revision: int | None = None
) -> Rollout:
    """Let a paused rollout bake its step anew; the evidence so far stays."""
    row = _locked(rollout, revision)
    if row.phase != Phase.PAUSED:
        raise Conflict(f"The rollout is {row.phase}; only a paused one can be resumed")
    move(
        row,
        Phase.BAKING,
        reason or "resumed by hand",
        actor,
        now,
        step_due_at=None,
        step_limit_at=None,
        next_check_at=None,
    )
    _audit(row, "resumed", actor, Phase.PAUSED)
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
    """Make the target stable without waiting for the rest of the plan."""
    row = _locked(rollout, revision)
    if row.phase not in {Phase.BAKING, Phase.PAUSED}:
        raise Conflict(f"The rollout is {row.phase}; only a baking or paused one can be promoted")
    before = row.phase
    switch_stable(row, reason or "promoted by hand", actor, now, None)
    _audit(row, "promoted", actor, before)
    return row


def steps_of(rollout: Rollout) -> PlanDocument | None:
    """Return the plan that the rollout follows; None for a first version or a rollback."""
    return from_json(rollout.plan_document) if rollout.plan_document else None
