"""Forms of the notification pages; the services validate."""

from __future__ import annotations

from typing import Any

from django import forms

from apps.models.models import RegisteredModel
from apps.notifications.events import EVENTS
from apps.notifications.models import NotificationTarget
from contract.names import NAME_RULE


class ChangeForm(forms.Form):
    """The fields of a target that can be changed; read `values`."""

    address = forms.CharField(
        max_length=1_000,
        help_text="The URL of a webhook, or of a Slack incoming webhook; or an e-mail address.",
    )
    model = forms.ModelChoiceField(
        RegisteredModel.objects.active().order_by("name"),
        required=False,
        empty_label="all models",
        help_text="Only events of this model.",
    )
    events = forms.MultipleChoiceField(
        choices=list(EVENTS.items()),
        required=False,
        widget=forms.CheckboxSelectMultiple,
        help_text="Choose none to receive all events.",
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
