"""Form of a metric. The page's script hides fields that do not apply to the chosen kind.

`data-when` on a field is the condition to show it, such as `kind:mean,ratio source:outcomes`: each
word names a choice field and its accepted values.
"""

from __future__ import annotations

from typing import Any

from django import forms

from apps.experiments.metrics import PPM, VALUE_MAX, WINDOW_MAX_S
from apps.experiments.models import Metric
from apps.models.models import valid_name

HOUR_S = 3_600
PERCENT_PPM = PPM // 100
WHEN = {
    "outcomes_of": "source:outcomes",
    "divided_by": "source:outcomes kind:ratio",
    "per_unit": "source:outcomes kind:proportion,mean,quantile",
    "missing_is_zero": "source:outcomes",
    "quantile": "kind:quantile",
    "cap": "kind:mean,ratio",
    "window_hours": "source:outcomes",
}


class MetricForm(forms.Form):
    name = forms.CharField(max_length=100, validators=[valid_name])
    kind = forms.ChoiceField(
        choices=Metric.Kind.choices,
        help_text="Proportion: outcomes are 0 or 1. Mean: mean of the units' values. Ratio: ratio "
        "of two sums over the units. Quantile: quantile of the units' values.",
    )
    source = forms.ChoiceField(
        choices=Metric.Source.choices,
        initial=Metric.Source.OUTCOMES,
        help_text="Outcomes that applications send, or a measurement of the data plane.",
    )
    direction = forms.ChoiceField(
        label="Better direction",
        choices=[
            ("", "default: lower for latency and errors, else higher"),
            (Metric.Direction.INCREASE.value, "higher"),
            (Metric.Direction.DECREASE.value, "lower"),
        ],
        required=False,
    )
    quantile = forms.DecimalField(
        label="Quantile (%)",
        required=False,
        min_value=0.0001,
        max_value=99.9999,
        decimal_places=4,
        help_text="95: the value that 95 % of the units are below.",
    )
    outcomes_of = forms.ModelChoiceField(
        Metric.objects.filter(source=Metric.Source.OUTCOMES, outcomes_of=None).order_by("name"),
        to_field_name="name",
        required=False,
        empty_label="its own",
        label="Outcomes of",
        help_text="Compute the metric from the outcomes of another metric.",
    )
    divided_by = forms.ModelChoiceField(
        Metric.objects.filter(source=Metric.Source.OUTCOMES, outcomes_of=None).order_by("name"),
        to_field_name="name",
        required=False,
        empty_label="choose",
        label="Divided by",
        help_text="The denominator is the sum of this metric's outcomes.",
    )
    per_unit = forms.ChoiceField(
        label="Unit value",
        choices=[
            ("", "default: first outcome for a proportion, else the mean"),
            *Metric.PerUnit.choices,
        ],
        required=False,
        help_text="How a unit's outcomes are combined. A proportion takes first or max.",
    )
    missing_is_zero = forms.BooleanField(
        label="Count a unit without an outcome as 0; otherwise exclude it until it has one",
        required=False,
    )
    cap = forms.FloatField(
        required=False,
        min_value=-VALUE_MAX,
        max_value=VALUE_MAX,
        help_text="Upper limit of a unit's value, so that a few extreme values do not decide.",
        widget=forms.NumberInput(attrs={"step": "any"}),
    )
    window_hours = forms.DecimalField(
        label="Window (hours)",
        required=False,
        min_value=0.0003,
        max_value=WINDOW_MAX_S // HOUR_S,
        decimal_places=4,
        help_text="Outcomes count for this time after the exposure; the unit counts after it. "
        "Empty: no limit.",
    )
    description = forms.CharField(
        required=False, max_length=10_000, widget=forms.Textarea(attrs={"rows": 2})
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for choice in ("kind", "source"):
            self.fields[choice].widget.attrs["data-choice"] = choice
        for name, when in WHEN.items():
            self.fields[name].widget.attrs["data-when"] = when

    def clean(self) -> dict[str, Any]:
        data = super().clean() or self.cleaned_data
        kind, source = data.get("kind"), data.get("source")
        needed = {"quantile": kind == Metric.Kind.QUANTILE}
        needed["divided_by"] = kind == Metric.Kind.RATIO and source == Metric.Source.OUTCOMES
        for field, is_needed in needed.items():
            if is_needed and data.get(field) is None and field not in self.errors:
                self.add_error(field, f"Required for a {kind}.")
        return data

    def service_arguments(self) -> dict[str, Any]:
        """Return the input as arguments of `create_metric`."""
        data = dict(self.cleaned_data)
        quantile, hours = data.pop("quantile"), data.pop("window_hours")
        return {
            **data,
            "direction": data["direction"] or None,
            "per_unit": data["per_unit"] or None,
            "quantile_ppm": None if quantile is None else round(quantile * PERCENT_PPM),
            "window_s": None if hours is None else max(1, round(hours * HOUR_S)),
        }

    # The form's name of a service's field, for errors.
    FORM_FIELDS = {"quantile_ppm": "quantile", "window_s": "window_hours"}
