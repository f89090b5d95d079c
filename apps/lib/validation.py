"""Validation of a row by its model's field validators and check constraints."""

from __future__ import annotations

from collections.abc import Collection

from django.core.exceptions import NON_FIELD_ERRORS, ValidationError
from django.db import models

from apps.lib.errors import Invalid


def check_row(row: models.Model, names: Collection[str]) -> None:
    """Check the fields `names` of `row`, and the row as a whole.

    Raises:
        Invalid: the message names the first invalid field; the detail `fields` has all of them.
    """
    others = {field.name for field in row._meta.fields if field.name not in names}
    try:
        row.clean_fields(exclude=others)
        row.validate_constraints()
    except ValidationError as error:
        fields = error.message_dict
        field, (message, *_) = next(iter(fields.items()))
        text = message if field == NON_FIELD_ERRORS else f"{field}: {message}"
        raise Invalid(text, fields=fields) from error
