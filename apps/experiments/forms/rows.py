"""Formsets of a draft's two tables: its variants, and its metrics with their roles.

Blank rows are ignored. All errors of all rows show at once, each at its field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django import forms
from django.core.exceptions import ValidationError

from apps.experiments.draft_checks import (
    METRICS_MAX,
    RESERVED_NAMES,
    VARIANTS_MAX,
    VARIANTS_MIN,
    MetricChoice,
    VariantSpec,
    check_choices,
    check_weights,
    margin_of,
)
from apps.experiments.forms.fields import basis_points, percent_field
from apps.experiments.models import Experiment, Metric, MetricUse
from apps.lib.errors import Invalid
from apps.models.models import ModelVersion, valid_name

# Extra rows for browsers without scripts.
MORE_ROWS = 4


def _label_in_table(form: forms.Form) -> None:
    """Label each field for screen readers; the table's header labels the column visually."""
    for field in form.fields.values():
        field.widget.attrs["aria-label"] = str(field.label or "")


class VariantForm(forms.Form):
    """A row of the table of variants; a row without name and weight is blank."""

    name = forms.CharField(label="Name", max_length=100, required=False, validators=[valid_name])
    version = forms.TypedChoiceField(label="Version", coerce=int, required=False, empty_value=None)
    weight = percent_field("Weight (%)", required=False)

    def __init__(self, *args: Any, versions: Sequence[ModelVersion], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _label_in_table(self)
        field: Any = self.fields["version"]
        field.choices = [("", "choose"), *((v.number, _label(v)) for v in versions)]

    @property
    def is_blank(self) -> bool:
        return not self.data_of("name") and not self.data_of("weight")

    def data_of(self, field: str) -> str:
        return str(self.data.get(self.add_prefix(field), "")).strip()

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if name in RESERVED_NAMES:
            raise ValidationError(f"{name} is reserved for traffic outside experiments.")
        return name

    def clean(self) -> dict[str, Any]:
        data = super().clean() or self.cleaned_data
        if not self.is_blank:
            for field in ("name", "version", "weight"):
                if data.get(field) in (None, "") and field not in self.errors:
                    self.add_error(field, "Fill in this field, or clear the row.")
        return data


def _label(version: ModelVersion) -> str:
    stable = version.model.stable_id == version.pk
    tag = f" {version.semantic_tag}" if version.semantic_tag else ""
    return f"{version}{tag}{' (stable)' if stable else ''}"


class Rows(forms.BaseFormSet):  # type: ignore[type-arg]
    """A formset that ignores blank rows."""

    def filled(self) -> list[Any]:
        return [form for form in self.forms if not form.is_blank]

    def check_unique(self, field: str, plural: str) -> None:
        """Add an error to each row that repeats the name of an earlier row."""
        names = set()
        for form in self.filled():
            name = form.cleaned_data.get(field)
            if name and name in names:
                form.add_error(field, f"Two {plural} are named {name}.")
            names.add(name)


class VariantRows(Rows):
    def clean(self) -> None:
        self.check_unique("name", "variants")
        filled = self.filled()
        if len(filled) < VARIANTS_MIN:
            raise ValidationError(f"An experiment needs at least {VARIANTS_MIN} variants.")
        if any(form.errors for form in filled):
            return
        specs = self.specs()
        try:
            check_weights({spec.name: spec.weight_bp for spec in specs}, specs[0].name)
        except Invalid as error:
            raise ValidationError(error.message[0].upper() + error.message[1:]) from None

    def specs(self) -> list[VariantSpec]:
        """Return the variants in order; the first one is the control."""
        return [
            VariantSpec(
                name=form.cleaned_data["name"],
                version_number=form.cleaned_data["version"],
                weight_bp=basis_points(form.cleaned_data["weight"]),
                is_control=place == 0,
            )
            for place, form in enumerate(self.filled())
        ]


class MetricUseForm(forms.Form):
    """A row of the table of metrics; a row without a metric is blank."""

    metric = forms.ChoiceField(label="Metric", required=False)
    role = forms.ChoiceField(label="Role", choices=MetricUse.ROLES, required=False)
    margin = forms.FloatField(label="Margin in the metric's unit", required=False)
    margin_percent = forms.FloatField(label="Margin (% of the current value)", required=False)
    baseline = forms.FloatField(label="Current value of the metric", required=False)
    mann_whitney = forms.BooleanField(label="Show the Mann-Whitney test", required=False)

    def __init__(self, *args: Any, metrics: Mapping[str, Metric], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.metrics = metrics
        _label_in_table(self)
        # The page's script hides fields that apply only to guardrails.
        self.fields["role"].widget.attrs["data-choice"] = "role"
        # Removing a row empties this field, which makes the row blank.
        self.fields["metric"].widget.attrs["data-empties"] = ""
        for name in ("margin", "margin_percent", "baseline"):
            self.fields[name].widget.attrs |= {"step": "any", "data-when": "role:guardrail"}
        field: Any = self.fields["metric"]
        field.choices = [
            ("", "none"),
            *((m.name, f"{m.name} ({m.kind})") for m in metrics.values()),
        ]

    @property
    def is_blank(self) -> bool:
        return not str(self.data.get(self.add_prefix("metric"), "")).strip()

    def clean(self) -> dict[str, Any]:
        data = super().clean() or self.cleaned_data
        if self.is_blank or self.errors:
            return data
        if not data["role"]:
            self.add_error("role", "Choose a role.")
            return data
        choice = self.choice()
        self._try("margin", lambda: margin_of(choice))
        primary = MetricChoice(choice.metric, mann_whitney=choice.mann_whitney)
        self._try("mann_whitney", lambda: check_choices([primary]))
        return data

    def _try(self, field: str, check: Any) -> None:
        try:
            check()
        except Invalid as error:
            self.add_error(field, error.sentence)

    def choice(self) -> MetricChoice:
        data = self.cleaned_data
        percent = data.get("margin_percent")
        return MetricChoice(
            metric=self.metrics[data["metric"]],
            role=data["role"],
            margin=data.get("margin"),
            mann_whitney=data["mann_whitney"],
            margin_relative=None if percent is None else percent / 100.0,
            baseline=data.get("baseline"),
        )


class MetricUseRows(Rows):
    def clean(self) -> None:
        self.check_unique("metric", "rows")
        filled = self.filled()
        roles = [form.cleaned_data.get("role") for form in filled]
        if not filled:
            raise ValidationError("An experiment needs at least one metric, the primary one.")
        if roles.count(MetricUse.PRIMARY) != 1:
            count = roles.count(MetricUse.PRIMARY)
            raise ValidationError(f"Exactly one metric must be primary, not {count}.")

    def choices(self) -> list[MetricChoice]:
        return [form.choice() for form in self.filled()]


VariantFormSet = forms.formset_factory(
    VariantForm,
    formset=VariantRows,
    extra=0,
    min_num=VARIANTS_MIN,
    max_num=VARIANTS_MAX,
    absolute_max=2 * VARIANTS_MAX,
    validate_max=True,
)
MetricUseFormSet = forms.formset_factory(
    MetricUseForm,
    formset=MetricUseRows,
    extra=0,
    min_num=1,
    max_num=METRICS_MAX,
    absolute_max=2 * METRICS_MAX,
    validate_max=True,
)


def variant_rows(
    data: Any, versions: Sequence[ModelVersion], draft: Experiment | None, *, more: bool = False
) -> VariantRows:
    """Return the posted rows, those of a draft, or 50 % each for stable and the newest version."""
    formset = VariantFormSet(
        data,
        prefix="variants",
        initial=_draft_variants(draft) if draft else _halves(versions),
        form_kwargs={"versions": versions},
    )
    formset.extra = MORE_ROWS if more else 0
    assert isinstance(formset, VariantRows)
    return formset


def _draft_variants(draft: Experiment) -> list[dict[str, Any]]:
    return [
        {"name": v.name, "version": v.version.number, "weight": f"{v.weight_bp / 100:g}"}
        for v in draft.variants.select_related("version").order_by("-is_control", "position")
    ]


def _halves(versions: Sequence[ModelVersion]) -> list[dict[str, Any]]:
    stable = next((v for v in versions if v.model.stable_id == v.pk), None)
    other = next((v for v in versions if v != stable), stable)
    return [
        {"name": "control", "version": stable.number if stable else None, "weight": 50},
        {"name": "treatment", "version": other.number if other else None, "weight": 50},
    ]


def metric_use_rows(
    data: Any, metrics: Mapping[str, Metric], draft: Experiment | None, *, more: bool = False
) -> MetricUseRows:
    """Return the posted rows, those of a draft, or one row for the primary metric."""
    uses = draft.metric_uses.select_related("metric").order_by("position") if draft else ()
    initial: list[dict[str, Any]] = [
        {
            "metric": use.metric.name,
            "role": use.role,
            "margin": use.margin,
            "mann_whitney": use.mann_whitney,
        }
        for use in uses
    ] or [{"role": MetricUse.PRIMARY}]
    formset = MetricUseFormSet(
        data, prefix="metrics", initial=initial, form_kwargs={"metrics": metrics}
    )
    formset.extra = MORE_ROWS if more else 0
    assert isinstance(formset, MetricUseRows)
    return formset
