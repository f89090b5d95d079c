"""Forms of experiments. They read what was typed; the services decide whether it can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django import forms
from django.core.exceptions import ValidationError

from apps.experiments.models import Experiment, Metric
from apps.experiments.services import (
    PLANNED_UNITS_MAX,
    VARIANTS_MAX,
    VARIANTS_MIN,
    MetricChoice,
    VariantSpec,
)
from apps.models.models import ModelVersion, valid_name


def percent_field(label: str, **options: Any) -> forms.DecimalField:
    return forms.DecimalField(label=label, min_value=0, max_value=100, decimal_places=2, **options)


class MetricForm(forms.Form):
    name = forms.CharField(max_length=100, validators=[valid_name])
    kind = forms.ChoiceField(
        choices=Metric.Kind.choices,
        help_text="Proportion: outcomes are 0 or 1. Mean: outcomes are amounts.",
    )
    direction = forms.ChoiceField(
        choices=Metric.Direction.choices, help_text="Which way is better."
    )
    description = forms.CharField(required=False, widget=forms.Textarea(attrs={"rows": 2}))


class ExperimentForm(forms.Form):
    name = forms.CharField(max_length=100, validators=[valid_name])
    hypothesis = forms.CharField(required=False, widget=forms.Textarea(attrs={"rows": 2}))
    metric = forms.ModelChoiceField(Metric.objects.order_by("name"))
    coverage = percent_field(
        "Coverage (%)", initial=100, help_text="Share of units that take part."
    )
    planned_units = forms.IntegerField(
        min_value=1,
        max_value=PLANNED_UNITS_MAX,
        initial=10_000,
        help_text="All variants together. Tunes the intervals; it stops nothing.",
    )
    alpha = forms.DecimalField(
        label="Chance of a false verdict (%)",
        initial=5,
        min_value=0,
        max_value=50,
        decimal_places=4,
    )

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if Experiment.objects.filter(name=name).exists():
            raise ValidationError(f"An experiment named {name} exists already.")
        return name

    def service_arguments(self) -> dict[str, Any]:
        """Return what was typed in the units of `create_experiment`."""
        given = self.cleaned_data
        return {
            "name": given["name"],
            "hypothesis": given["hypothesis"],
            "metrics": [MetricChoice(given["metric"])],
            "coverage_bp": round(given["coverage"] * 100),
            "planned_units": given["planned_units"],
            "alpha_ppm": round(given["alpha"] * 10_000),
        }


class VariantForm(forms.Form):
    """A row of the table of variants; a row without name and weight is no variant."""

    name = forms.CharField(label="Name", max_length=100, required=False, validators=[valid_name])
    version = forms.TypedChoiceField(label="Version", coerce=int, required=False, empty_value=None)
    weight = percent_field("Weight in per cent", required=False)

    def __init__(self, *args: Any, versions: Sequence[ModelVersion], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for unlabelled in self.fields.values():
            # The table's header labels the column for those who see it.
            unlabelled.widget.attrs["aria-label"] = str(unlabelled.label or "")
        field = self.fields["version"]
        assert isinstance(field, forms.TypedChoiceField)
        field.choices = [("", "choose"), *((v.number, _label(v)) for v in versions)]

    @property
    def is_blank(self) -> bool:
        return not self.cleaned_data.get("name") and self.cleaned_data.get("weight") is None

    def clean(self) -> dict[str, Any]:
        given = super().clean() or self.cleaned_data
        if not self.is_blank and not self.errors:
            for field in ("name", "version", "weight"):
                if given.get(field) in (None, ""):
                    self.add_error(field, "Fill this in, or empty the row.")
        return given


def _label(version: ModelVersion) -> str:
    stable = version.model.stable_id == version.pk
    tag = f" {version.semantic_tag}" if version.semantic_tag else ""
    return f"{version}{tag}{' (stable)' if stable else ''}"


class VariantRows(forms.BaseFormSet):  # type: ignore[type-arg]
    def specs(self) -> list[VariantSpec]:
        """Return the variants in their order; the first one is the control."""
        filled = [form.cleaned_data for form in self.forms if not form.is_blank]
        return [
            VariantSpec(
                name=row["name"],
                version_number=row["version"],
                weight_bp=round(row["weight"] * 100),
                is_control=place == 0,
            )
            for place, row in enumerate(filled)
        ]


VariantFormSet = forms.formset_factory(
    VariantForm,
    formset=VariantRows,
    extra=0,
    min_num=VARIANTS_MIN,
    max_num=VARIANTS_MAX,
    absolute_max=2 * VARIANTS_MAX,
)


def variant_formset(data: Any, versions: Sequence[ModelVersion]) -> VariantRows:
    """Return the rows as typed, or a half each for stable and the newest other version."""
    stable = next((v for v in versions if v.model.stable_id == v.pk), None)
    other = next((v for v in versions if v != stable), stable)
    initial = [
        {"name": "control", "version": stable.number if stable else None, "weight": 50},
        {"name": "treatment", "version": other.number if other else None, "weight": 50},
    ]
    formset = VariantFormSet(
        data, prefix="variants", initial=initial, form_kwargs={"versions": versions}
    )
    assert isinstance(formset, VariantRows)
    return formset
