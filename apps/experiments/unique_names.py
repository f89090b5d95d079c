"""Insert rows with unique names; distinguish an invalid field from a taken name."""

from __future__ import annotations

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from apps.experiments.models import Experiment, Metric
from apps.lib.errors import Conflict, Invalid

# Columns that a new row leaves empty.
UNSET_AT_FIRST = {
    "generation",
    "result",
    "refreshed_at",
    "refresh_due_at",
    "started_at",
    "ended_at",
    "rollout",
}


def insert_named(row: Metric | Experiment, taken: str) -> None:
    """Insert `row`. Raises Invalid for a bad field, Conflict(`taken`) when the name is taken."""
    try:
        row.clean_fields(exclude=UNSET_AT_FIRST)
    except ValidationError as error:
        field, messages = next(iter(error.message_dict.items()))
        raise Invalid(f"{messages[0]}", field=field) from None
    try:
        with transaction.atomic():
            row.save(force_insert=True)
    except IntegrityError:
        raise Conflict(taken) from None
