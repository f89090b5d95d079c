"""Filter form of the list of experiments."""

from __future__ import annotations

from django import forms

from apps.experiments.states import ExperimentState
from apps.models.models import RegisteredModel


class ExperimentFilterForm(forms.Form):
    model = forms.ModelChoiceField(
        RegisteredModel.objects.order_by("name"),
        to_field_name="name",
        required=False,
        empty_label="All",
    )
    state = forms.ChoiceField(choices=[("", "All"), *ExperimentState.choices], required=False)
