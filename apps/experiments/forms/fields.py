"""Helpers of the forms: percentages, lists of names, errors of services at their fields."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from django import forms

from apps.lib.errors import InterlockError

PERCENT_BP = 100


def percent_field(label: str, **options: Any) -> forms.DecimalField:
    options = {"min_value": 0, "max_value": 100, "decimal_places": 2} | options
    return forms.DecimalField(label=label, **options)


def basis_points(percent: Decimal) -> int:
    return round(percent * PERCENT_BP)


def split_names(text: str) -> list[str]:
    """Return the unique names in `text`, separated by commas, spaces or line breaks."""
    return list(dict.fromkeys(name for name in re.split(r"[\s,]+", text) if name))


def add_service_error(form: forms.Form, error: InterlockError) -> None:
    """Add the error to the field that its message begins with, or else to the form."""
    name, _, message = error.message.partition(": ")
    if name in form.fields and message:
        form.add_error(name, message[0].upper() + message[1:])
    else:
        form.add_error(None, error.message[0].upper() + error.message[1:])
