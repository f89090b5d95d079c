"""Forms of actions on a running or paused experiment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django import forms

from apps.experiments.draft_checks import check_weights
from apps.experiments.forms.fields import PERCENT_BP, basis_points, percent_field
from apps.experiments.models import Variant
from apps.lib.errors import Invalid
from apps.rollouts.models import Plan
from apps.rollouts.selectors.rollouts import steps_of_saved

REASON_MAX = 1_000


class WeightsForm(forms.Form):
    """A weight field per variant, named by its place, and a reason."""

    reason = forms.CharField(
        max_length=REASON_MAX, required=False, help_text="Stored in the experiment's history."
    )

    def __init__(self, data: Any, *, variants: Sequence[Variant]) -> None:
        super().__init__(data)
        self.variants = variants
        for place, variant in enumerate(variants):
            self.fields[f"weight-{place}"] = percent_field(
                f"Weight of {variant.name} (%)", initial=f"{variant.weight_bp / 100:g}"
            )

    def rows(self) -> list[tuple[Variant, forms.BoundField]]:
        return [(v, self[f"weight-{place}"]) for place, v in enumerate(self.variants)]

    def weights_bp(self) -> dict[str, int]:
        data = self.cleaned_data
        return {
            v.name: basis_points(data[f"weight-{place}"]) for place, v in enumerate(self.variants)
        }

    def clean(self) -> dict[str, Any]:
        data = super().clean() or self.cleaned_data
        if not self.errors:
            control = next(v.name for v in self.variants if v.is_control)
            try:
                check_weights(self.weights_bp(), control)
            except Invalid as error:
                self.add_error(None, error.message[0].upper() + error.message[1:])
        return data


class ShipForm(forms.Form):
    """The variant to ship, and the plan of its rollout."""

    variant = forms.ChoiceField()
    plan = forms.ModelChoiceField(
        Plan.objects.prefetch_related("steps").order_by("-is_default", "name"),
        to_field_name="name",
        required=False,
        empty_label="The default plan",
    )
    reason = forms.CharField(
        max_length=REASON_MAX, required=False, widget=forms.Textarea(attrs={"rows": 2})
    )
    force = forms.BooleanField(label="Ship despite the doubts about the result", required=False)

    def __init__(
        self, data: Any, *, variants: Sequence[Variant], stable_id: int | None, initial: Any
    ) -> None:
        super().__init__(data, initial=initial)
        # A variant with the stable version cannot be shipped.
        shippable = [v for v in variants if v.version_id != stable_id]
        field: Any = self.fields["variant"]
        field.choices = [(v.name, f"{v.name} ({v.version})") for v in shippable]
        plan: Any = self.fields["plan"]
        plan.label_from_instance = _name_plan


def _name_plan(plan: Plan) -> str:
    steps = " → ".join(f"{step.weight_bp / PERCENT_BP:g}" for step in steps_of_saved(plan))
    return f"{plan.name}: {steps} %{' (default)' if plan.is_default else ''}"
