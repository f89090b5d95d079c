"""The form of a metric. What does not matter for the chosen kind is hidden by the page's script.

`data-when` on a field says when it matters, such as `kind:mean,ratio source:outcomes`: each word
names a choice of the form and the values of it that are meant.
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
        help_text="Proportion: outcomes are 0 or 1. Mean: of the units' values. Ratio: of two sums "
        "over the units. Quantile: of the units' values.",
    )
    source = forms.ChoiceField(
        choices=Metric.Source.choices,
        initial=Metric.Source.OUTCOMES,
        help_text="Outcomes that applications send, or what the data plane measures itself.",
    )
    direction = forms.ChoiceField(
        label="Better is",
        choices=[
            ("", "as usual: more; of latency and errors less"),
            (Metric.Direction.INCREASE.value, "more"),
            (Metric.Direction.DECREASE.value, "less"),
        ],
        required=False,
    )
    quantile = forms.DecimalField(
        label="Which quantile (%)",
        required=False,
        min_value=0.0001,
        max_value=99.9999,
        decimal_places=4,
        help_text="95: the value that 95 % of the units stay below.",
    )
    outcomes_of = forms.ModelChoiceField(
        Metric.objects.filter(source=Metric.Source.OUTCOMES, outcomes_of=None).order_by("name"),
        to_field_name="name",
        required=False,
        empty_label="its own, sent under its name",
        label="Outcomes of",
        help_text="Compute it from the outcomes that another metric has already.",
    )
    divided_by = forms.ModelChoiceField(
        Metric.objects.filter(source=Metric.Source.OUTCOMES, outcomes_of=None).order_by("name"),
        to_field_name="name",
        required=False,
        empty_label="choose",
        label="Divided by",
        help_text="The sum of this metric's outcomes is the denominator.",
    )
    per_unit = forms.ChoiceField(
        label="A unit's value is",
        choices=[
            ("", "as usual: of a proportion the first outcome, else the mean"),
            *Metric.PerUnit.choices,
        ],
        required=False,
        help_text="Of all its outcomes after its exposure. A proportion takes first or max.",
    )
    missing_is_zero = forms.BooleanField(
        label="A unit without an outcome counts as 0; otherwise it waits and is in no mean",
        required=False,
    )
    cap = forms.FloatField(
        required=False,
        min_value=-VALUE_MAX,
        max_value=VALUE_MAX,
        help_text="A unit's value counts as this at most, so that few huge ones do not decide.",
        widget=forms.NumberInput(attrs={"step": "any"}),
    )
    window_hours = forms.DecimalField(
        label="Window (hours)",
        required=False,
        min_value=0.0003,
        max_value=WINDOW_MAX_S // HOUR_S,
        decimal_places=4,
        help_text="Outcomes count so long after the exposure, and a unit counts once that is over. "
        "Empty: for ever.",
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
        given = super().clean() or self.cleaned_data
        kind, source = given.get("kind"), given.get("source")
        needed = {"quantile": kind == Metric.Kind.QUANTILE}
        needed["divided_by"] = kind == Metric.Kind.RATIO and source == Metric.Source.OUTCOMES
        for field, is_needed in needed.items():
            if is_needed and given.get(field) is None and field not in self.errors:
                self.add_error(field, f"A {kind} needs this.")
        return given

    def service_arguments(self) -> dict[str, Any]:
        """Return what was typed in the units of `create_metric`."""
        given = dict(self.cleaned_data)
        quantile, hours = given.pop("quantile"), given.pop("window_hours")
        return {
            **given,
            "direction": given["direction"] or None,
            "per_unit": given["per_unit"] or None,
            "quantile_ppm": None if quantile is None else round(quantile * PERCENT_PPM),
            "window_s": None if hours is None else max(1, round(hours * HOUR_S)),
        }

    # Services name their own fields; these are the form's for the same.
    SAID_AS = {"quantile_ppm": "quantile", "window_s": "window_hours"}
