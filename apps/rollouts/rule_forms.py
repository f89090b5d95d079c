"""Forms of what holds rollouts back: freeze windows, the limit; and of releases."""

from __future__ import annotations

from datetime import UTC
from typing import Any

from django import forms

from apps.lib.errors import InterlockError
from apps.models.models import RegisteredModel, valid_name
from apps.rollouts.forms import LocalInstant
from apps.rollouts.freezes import read_zone
from apps.rollouts.models import Plan
from apps.rollouts.selectors.rules import Allowed
from contract.names import NAME_RULE

LARGEST = 2_147_483_647


class FreezeForm(forms.Form):
    """A time in which nothing starts and nothing gets further."""

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
        help_text="By whose clocks both are meant, and a weekly one comes again.",
        widget=forms.TextInput({"placeholder": "UTC", "list": "time-zones"}),
    )
    reason = forms.CharField(
        max_length=500, help_text="What people read whose rollout is held, such as: year's end."
    )
    is_weekly = forms.BooleanField(label="Again each week", required=False)

    def clean(self) -> dict[str, Any]:
        """Read both instants by the clocks of the chosen time zone."""
        given = super().clean() or self.cleaned_data
        given["time_zone"] = given.get("time_zone") or "UTC"
        try:
            zone = read_zone(given["time_zone"])
        except InterlockError as error:
            tell(self, error)
            return given
        for name in ("starts_at", "ends_at"):
            if given.get(name) is not None:
                given[name] = given[name].replace(tzinfo=zone).astimezone(UTC)
        return given

    def offer(self, whole: bool, some: Allowed) -> None:
        """Let the person choose what they may freeze: all models if `whole`, and `some` models.

        Only what is shown is changed; what is sent is held against the roles.
        """
        choices = [(model.name, model.name) for model in some.models]
        field: Any = self.fields["model"]
        field.widget.choices = [("", field.empty_label), *choices] if whole else choices


class LimitForm(forms.Form):
    concurrent_max = forms.IntegerField(
        label="Rollouts under way at most (empty: any number)",
        required=False,
        min_value=1,
        max_value=LARGEST,
    )


def tell(form: forms.Form, error: InterlockError) -> None:
    """Say a refusal beside the field that it begins with, or else above all fields."""
    name, _, told = error.message.partition(": ")
    if name in form.fields and told:
        form.add_error(name, told[0].upper() + told[1:])
    else:
        form.add_error(None, error.message)


class ReleaseForm(forms.Form):
    """The name and the plan of a release; its models are rows of their own."""

    name = forms.CharField(
        max_length=100, validators=[valid_name], help_text=f"{NAME_RULE.capitalize()}."
    )
    plan = forms.ModelChoiceField(
        queryset=Plan.objects.prefetch_related("steps").order_by("-is_default", "name"),
        to_field_name="name",
        empty_label=None,
    )
