"""Forms of freeze windows, the rollout limit and releases."""

from __future__ import annotations

from datetime import UTC
from typing import Any

from django import forms

from apps.lib.errors import InterlockError
from apps.lib.forms import add_service_error
from apps.models.models import RegisteredModel, valid_name
from apps.rollouts.forms import LocalInstant
from apps.rollouts.freezes import read_zone
from apps.rollouts.models import Plan
from apps.rollouts.selectors.rules import Allowed
from contract.names import NAME_RULE

INTEGER_MAX = 2_147_483_647


class FreezeForm(forms.Form):
    """A freeze window: no rollout starts or advances in it."""

    model = forms.ModelChoiceField(
        queryset=RegisteredModel.objects.active().order_by("name"),
        to_field_name="name",
        required=False,
        empty_label="All models",
    )
    starts_at = forms.DateTimeField(
        label="From", required=False, widget=LocalInstant(step=60), help_text="Empty: now."
    )
    ends_at = forms.DateTimeField(label="To", widget=LocalInstant(step=60))
    time_zone = forms.CharField(
        required=False,
        max_length=64,
        help_text="Time zone of start, end and weekly recurrence.",
        widget=forms.TextInput({"placeholder": "UTC", "list": "time-zones"}),
    )
    reason = forms.CharField(
        max_length=500, help_text="Shown to owners of held rollouts, for example: year-end freeze."
    )
    is_weekly = forms.BooleanField(label="Repeat every week", required=False)

    def clean(self) -> dict[str, Any]:
        """Convert start and end from the chosen time zone to UTC."""
        data = super().clean() or self.cleaned_data
        data["time_zone"] = data.get("time_zone") or "UTC"
        try:
            zone = read_zone(data["time_zone"])
        except InterlockError as error:
            add_service_error(self, error)
            return data
        for name in ("starts_at", "ends_at"):
            if data.get(name) is not None:
                data[name] = data[name].replace(tzinfo=zone).astimezone(UTC)
        return data

    def set_model_choices(self, include_all: bool, allowed: Allowed) -> None:
        """Offer the models that the person may freeze, and all models if `include_all`.

        Only the shown choices change; the view checks roles on the submitted value.
        """
        choices = [(model.name, model.name) for model in allowed.models]
        field: Any = self.fields["model"]
        field.widget.choices = [("", field.empty_label), *choices] if include_all else choices


class LimitForm(forms.Form):
    concurrent_max = forms.IntegerField(
        label="Maximum concurrent rollouts (empty: no limit)",
        required=False,
        min_value=1,
        max_value=INTEGER_MAX,
    )


class ReleaseForm(forms.Form):
    """The name and plan of a release; its models are separate rows."""

    name = forms.CharField(
        max_length=100, validators=[valid_name], help_text=f"{NAME_RULE.capitalize()}."
    )
    plan = forms.ModelChoiceField(
        queryset=Plan.objects.prefetch_related("steps").order_by("-is_default", "name"),
        to_field_name="name",
        empty_label=None,
    )
