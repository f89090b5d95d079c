"""What people send to the pages of notifications. The services decide."""

from __future__ import annotations

from typing import Any

from django import forms

from apps.models.models import RegisteredModel
from apps.notifications.events import EVENTS
from apps.notifications.models import NotificationTarget
from contract.names import NAME_RULE


class ChangeForm(forms.Form):
    """What may change of a target; read `values`."""

    address = forms.CharField(
        max_length=1_000,
        help_text="A URL for a webhook or Slack (its incoming webhook), or an e-mail address.",
    )
    model = forms.ModelChoiceField(
        RegisteredModel.objects.active().order_by("name"),
        required=False,
        empty_label="all models",
        help_text="Told only of what happens to it.",
    )
    events = forms.MultipleChoiceField(
        choices=[(event, told) for event, told in EVENTS.items()],
        required=False,
        widget=forms.CheckboxSelectMultiple,
        help_text="None chosen: all of them.",
    )

    @classmethod
    def of(cls, target: NotificationTarget) -> ChangeForm:
        initial = {"address": target.address, "model": target.model_id, "events": target.events}
        return cls(initial=initial)

    def values(self) -> dict[str, Any]:
        return dict(self.cleaned_data)


class TargetForm(ChangeForm):
    name = forms.CharField(max_length=100, help_text=f"{NAME_RULE.capitalize()}.")
    kind = forms.ChoiceField(choices=NotificationTarget.Kind.choices)
    field_order = ["name", "kind", "address", "model", "events"]
