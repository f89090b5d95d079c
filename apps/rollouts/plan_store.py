"""Saves and deletes plans. A running rollout keeps the plan that it started with."""

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
    """Create a plan from `document`, or change `plan` to it.

    Raises:
        Invalid: the steps do not rise to at most 100 %, a check is unknown, the name is not valid,
            or no plan would be the default plan.
        Conflict: another plan has that name, or the plan changed at the same time.
    """
    check_plan(document)
    row = _locked(plan) if plan else Plan()
    before = to_json(document_of(row)) if plan else {}
    if row.is_default and not is_default:
        raise Invalid(f"{row.name} is the default plan; make another plan the default instead.")
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
        raise Conflict("Another person saved a plan at the same time. Reload the list.") from None
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
    """Delete a plan; running rollouts keep the plan that they started with.

    Raises:
        Conflict: it is the default plan, or another person deleted it.
    """
    row = _locked(plan)
    if row.is_default:
        raise Conflict(f"{row.name} is the default plan; make another plan the default first.")
    before = to_json(document_of(row))
    row.delete()
    record_audit(actor=actor, action="plan.deleted", target=row.name, before=before)


def _locked(plan: Plan) -> Plan:
    row = Plan.objects.select_for_update().filter(pk=plan.pk).first()
    if row is None:
        raise Conflict(f"The plan {plan.name} does not exist any more: another person deleted it.")
    return row


def _check_name(plan: Plan) -> None:
    try:
        plan.clean_fields(exclude=[name for name in plan_settings() if name != "name"])
    except ValidationError as error:
        raise Invalid(" ".join(error.messages)) from None
    if Plan.objects.exclude(pk=plan.pk).filter(name=plan.name).exists():
        raise Conflict(f"A plan named {plan.name} already exists.")


def _write_steps(plan: Plan, document: PlanDocument) -> None:
    plan.steps.all().delete()
    steps = to_json(document)["steps"]
    PlanStep.objects.bulk_create(
        PlanStep(plan=plan, position=position, **{name: step[name] for name in step_settings()})
        for position, step in enumerate(steps)
    )
