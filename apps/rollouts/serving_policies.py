"""Changes serving settings and warm-up requests.

Each change is one transaction with its audit entry and the new routing table.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db import transaction

from apps.lib.actors import Actor
from apps.lib.errors import Invalid
from apps.lib.validation import check_row
from apps.models.audit import record_audit
from apps.models.models import SERVING_SETTINGS, ModelVersion, RegisteredModel
from apps.models.warmup import Request, check_warmup
from apps.rollouts.candidates import check_plan_name
from apps.rollouts.publication import publish_table

SETTINGS = ("description", *SERVING_SETTINGS, "candidate_plan")


@transaction.atomic
def change_settings(
    *, model: RegisteredModel, actor: Actor, now: datetime, **settings: Any
) -> RegisteredModel:
    """Change the given settings of `model`, any of SETTINGS; return its row.

    Raises:
        Invalid: a value is out of range, or two values are inconsistent; nothing was changed.
    """
    row = RegisteredModel.objects.select_for_update(of=("self",)).get(pk=model.pk)
    changed = {name: value for name, value in settings.items() if getattr(row, name) != value}
    if not changed:
        return row
    before = {name: getattr(row, name) for name in changed}
    for name, value in changed.items():
        setattr(row, name, value)
    check_row(row, changed)
    check_plan_name(row.candidate_plan)
    if row.max_queue_size < row.max_batch_size:
        raise Invalid(
            f"{row.max_queue_size} is less than max_batch_size ({row.max_batch_size}).",
            field="max_queue_size",
        )
    row.save(update_fields=list(changed))
    record_audit(actor=actor, action="model.changed", target=row.name, before=before, after=changed)
    publish_table(reason=f"settings of {row.name} changed", actor=actor, now=now)
    return row


@transaction.atomic
def change_warmup(
    *, version: ModelVersion, requests: Any, actor: Actor, now: datetime
) -> ModelVersion:
    """Set the warm-up requests of `version`; an empty list means one request of zeros.

    Raises:
        Invalid: they do not match the signature or are too large; nothing was changed.
    """
    row = (
        ModelVersion.objects.select_for_update(of=("self",))
        .select_related("model")
        .get(pk=version.pk)
    )
    checked: list[Request] = check_warmup(requests, row.signature)
    if row.warmup == checked:
        return row
    before, row.warmup = row.warmup, checked
    row.save(update_fields=["warmup"])
    record_audit(
        actor=actor,
        action="version.warmup_changed",
        target=str(row),
        before={"requests": len(before)},
        after={"requests": len(checked)},
    )
    publish_table(reason=f"warm-up of {row} changed", actor=actor, now=now)
    return row
