"""What the forms share: shares in per cent, names in a row, refusals beside their fields."""

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
    """Return the names in `text`: separated by commas, spaces or lines; each once."""
    return list(dict.fromkeys(name for name in re.split(r"[\s,]+", text) if name))


def tell(form: forms.Form, error: InterlockError) -> None:
    """Say a refusal beside the field that it begins with, or else above all fields."""
    name, _, told = error.message.partition(": ")
    if name in form.fields and told:
        form.add_error(name, told[0].upper() + told[1:])
    else:
        form.add_error(None, error.message[0].upper() + error.message[1:])
