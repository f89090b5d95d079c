"""Helpers of the forms: percentages, lists of names, errors of services at their fields."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from django import forms

PERCENT_BP = 100


def percent_field(label: str, **options: Any) -> forms.DecimalField:
    options = {"min_value": 0, "max_value": 100, "decimal_places": 2} | options
    return forms.DecimalField(label=label, **options)


def basis_points(percent: Decimal) -> int:
    return round(percent * PERCENT_BP)


def split_names(text: str) -> list[str]:
    """Return the unique names in `text`, separated by commas, spaces or line breaks."""
    return list(dict.fromkeys(name for name in re.split(r"[\s,]+", text) if name))
