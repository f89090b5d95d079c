"""Saves plans. A running rollout keeps the plan that it started with: nothing here touches it."""

from __future__ import annotations

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from apps.lib.actors import Actor
from apps.lib.errors import Conflict, Invalid
from apps.models.audit import record_audit
from apps.rollouts.models import Plan, PlanStep
from apps.rollouts.plans import (
    PlanDocument,
    check_plan,
    document_of,
    plan_settings,
    step_settings,
    to_json,
)


@transaction.atomic
def save_plan(
    *,
    document: PlanDocument,
    description: str = "",
    is_default: bool = False,
    plan: Plan | None = None,
    actor: Actor,
) -> Plan:
    """Make a plan of `document`, or make `plan` say what it says.

    Raises:
        Invalid: the steps do not rise to at most 100 %, a check is unknown, the name is bad, or it
            would leave no plan the default one.
        Conflict: another plan has that name, or somebody else was faster.
    """
    check_plan(document)
    row = _locked(plan) if plan else Plan()
    before = to_json(document_of(row)) if plan else {}
    if row.is_default and not is_default:
        raise Invalid(f"{row.name} is the default plan: make another one the default instead.")
    for name in plan_settings():
        setattr(row, name, getattr(document, name))
    row.description = description
    _check_name(row)
    if is_default:
        Plan.objects.exclude(pk=row.pk).filter(is_default=True).update(is_default=False)
        row.is_default = True
    try:
        with transaction.atomic():
            row.save()
    except IntegrityError:
        raise Conflict("Somebody else saved a plan at the same time: look at it.") from None
    _write_steps(row, document)
    record_audit(
        actor=actor,
        action="plan.changed" if before else "plan.created",
        target=row.name,
        before=before,
        after=to_json(document),
    )
    return row


@transaction.atomic
def delete_plan(*, plan: Plan, actor: Actor) -> None:
    """Delete a plan; rollouts that follow it go on with the one that they started with.

    Raises:
        Conflict: it is the default plan, or somebody else deleted it.
    """
    row = _locked(plan)
    if row.is_default:
        raise Conflict(f"{row.name} is the default plan: make another one the default first.")
    before = to_json(document_of(row))
    row.delete()
    record_audit(actor=actor, action="plan.deleted", target=row.name, before=before)


def _locked(plan: Plan) -> Plan:
    row = Plan.objects.select_for_update().filter(pk=plan.pk).first()
    if row is None:
        raise Conflict(f"The plan {plan.name} is gone: somebody else was faster.")
    return row


def _check_name(plan: Plan) -> None:
    try:
        plan.clean_fields(exclude=[name for name in plan_settings() if name != "name"])
    except ValidationError as error:
        raise Invalid(" ".join(error.messages)) from None
    if Plan.objects.exclude(pk=plan.pk).filter(name=plan.name).exists():
        raise Conflict(f"A plan named {plan.name} exists already.")


def _write_steps(plan: Plan, document: PlanDocument) -> None:
    plan.steps.all().delete()
    steps = to_json(document)["steps"]
    PlanStep.objects.bulk_create(
        PlanStep(plan=plan, position=position, **{name: step[name] for name in step_settings()})
        for position, step in enumerate(steps)
    )
