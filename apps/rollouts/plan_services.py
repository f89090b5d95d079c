"""Saving plans: checked whole before anything is written."""

from __future__ import annotations

from typing import Any

from django.db import IntegrityError, transaction

from apps.lib.actors import Actor
from apps.lib.errors import Conflict
from apps.models.audit import record_audit
from apps.rollouts.models import Plan, PlanStep
from apps.rollouts.plans import PlanDocument, StepDocument, check_plan, document_of, to_json


@transaction.atomic
def save_plan(*, document: dict[str, Any], actor: Actor, existing: Plan | None = None) -> Plan:
    """Create a plan, or change `existing`, from its JSON form with its steps.

    Raises:
        Invalid: the steps fall, exceed 100 %, are empty, or name an unknown check.
        Conflict: another plan has that name.
    """
    settings = {name: value for name, value in document.items() if name != "steps"}
    description = settings.pop("description", "")
    steps = tuple(StepDocument(**{**s, "checks": tuple(s["checks"])}) for s in document["steps"])
    check_plan(PlanDocument(steps=steps, **settings))
    before = to_json(document_of(existing)) if existing else {}
    plan = existing or Plan()
    for name, value in {**settings, "description": description}.items():
        setattr(plan, name, value)
    try:
        with transaction.atomic():
            plan.save()
    except IntegrityError:
        raise Conflict(f"There is a plan {plan.name!r} already.") from None
    plan.steps.all().delete()
    PlanStep.objects.bulk_create(
        PlanStep(
            plan=plan,
            position=position,
            weight_bp=step.weight_bp,
            bake_s=step.bake_s,
            requests_min=step.requests_min,
            checks=list(step.checks),
        )
        for position, step in enumerate(steps)
    )
    plan = Plan.objects.get(pk=plan.pk)
    record_audit(
        actor=actor,
        action="plan.changed" if existing else "plan.created",
        target=plan.name,
        before=before,
        after=to_json(document_of(plan)),
    )
    return plan
