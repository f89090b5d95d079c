"""Form of a plan: effect and power in per cent, the baseline in the metric's unit."""

from __future__ import annotations

from typing import Any

from django import forms

from apps.experiments.power import POWER, RELATIVE, PowerRequest


class PowerForm(forms.Form):
    relative = forms.FloatField(
        label="Effect to detect (%)",
        required=False,
        help_text="Relative to the baseline. Negative for a metric that should decrease.",
        initial=RELATIVE * 100,
    )
    power = forms.FloatField(
        label="Power (%)", required=False, min_value=1, max_value=99.9, initial=80
    )
    mean = forms.FloatField(
        label="Baseline",
        required=False,
        help_text="Mean, or a rate between 0 and 1. Empty: from past data.",
    )
    sd = forms.FloatField(
        label="Standard deviation",
        required=False,
        help_text="Of the units' values; a rate needs none.",
    )

    def power_request(self) -> PowerRequest:
        """Return the request; an invalid form gives the default request."""
        data: dict[str, Any] = self.cleaned_data if self.is_valid() else {}
        relative, power = data.get("relative"), data.get("power")
        return PowerRequest(
            relative=None if relative is None else relative / 100,
            power=POWER if power is None else power / 100,
            mean=data.get("mean"),
            sd=data.get("sd"),
        )
