"""What may be asked of a plan: shares in per cent, the baseline in the metric's own unit."""

from __future__ import annotations

from typing import Any

from django import forms

from apps.experiments.power import POWER, RELATIVE, Asked


class PowerForm(forms.Form):
    relative = forms.FloatField(
        label="Effect to find (%)",
        required=False,
        help_text="Relative to the baseline. Negative for a metric that is to fall.",
        initial=RELATIVE * 100,
    )
    power = forms.FloatField(
        label="Chance to find it (%)", required=False, min_value=1, max_value=99.9, initial=80
    )
    mean = forms.FloatField(
        label="Baseline",
        required=False,
        help_text="Mean, or a rate between 0 and 1. Empty: what the past shows.",
    )
    sd = forms.FloatField(
        label="Spread (sd)", required=False, help_text="Of units' values; a rate has none."
    )

    def asked(self) -> Asked:
        """Return what is asked; of a form that is not valid, what is asked without it."""
        given: dict[str, Any] = self.cleaned_data if self.is_valid() else {}
        relative, power = given.get("relative"), given.get("power")
        return Asked(
            relative=None if relative is None else relative / 100,
            power=POWER if power is None else power / 100,
            mean=given.get("mean"),
            sd=given.get("sd"),
        )
