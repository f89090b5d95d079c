"""What people send to the registry's pages."""

from __future__ import annotations

from django import forms

CHART_SPANS = {"15": "15 minutes", "60": "1 hour", "360": "6 hours"}


class ChartSpanForm(forms.Form):
    """How far back a model's charts go, in minutes."""

    span = forms.ChoiceField(choices=list(CHART_SPANS.items()))
