"""Form of a draft, without its tables of variants and metrics."""

from __future__ import annotations

from typing import Any

from django import forms
from django.core.exceptions import ValidationError

from apps.experiments.draft_checks import (
    ALPHA_PPM_MAX,
    COVARIATE_MAX_S,
    HOLDOUT_MAX_BP,
    PLANNED_UNITS_MAX,
    check_settings,
    read_headers,
)
from apps.experiments.forms.fields import basis_points, percent_field, split_names
from apps.experiments.models import Experiment
from apps.lib.errors import Invalid
from apps.models.models import Tenant, valid_name

DAY_S = 86_400
PERCENT_PPM = 10_000
TEXT = {"rows": 2}


class DraftForm(forms.Form):
    """Settings of a draft. Input is shown again with all its errors."""

    name = forms.CharField(max_length=100, validators=[valid_name])
    hypothesis = forms.CharField(
        required=False, max_length=10_000, widget=forms.Textarea(attrs=TEXT)
    )
    coverage = percent_field(
        "Coverage (%)", initial=100, help_text="Share of the targeted units that are included."
    )
    holdout = percent_field(
        "Hold-out (%)",
        initial=0,
        max_value=HOLDOUT_MAX_BP // 100,
        help_text="Share of units that get stable in every experiment of the model.",
    )
    tenants = forms.CharField(
        required=False,
        widget=forms.Textarea(attrs=TEXT),
        help_text="Names, separated by commas or line breaks. Empty: all tenants.",
    )
    headers = forms.CharField(
        required=False,
        widget=forms.Textarea(attrs=TEXT),
        help_text="One header per line with its allowed values, e.g. x-country: de, at.",
    )
    planned_units = forms.IntegerField(
        min_value=1,
        max_value=PLANNED_UNITS_MAX,
        initial=10_000,
        help_text="All variants together. Tunes the intervals; the experiment does not stop there.",
    )
    alpha = forms.DecimalField(
        label="False-positive rate (%)",
        initial=5,
        min_value=0.0001,
        max_value=ALPHA_PPM_MAX // PERCENT_PPM,
        decimal_places=4,
    )
    covariate_days = forms.DecimalField(
        label="CUPED covariate (days)",
        initial=0,
        min_value=0,
        max_value=COVARIATE_MAX_S // DAY_S,
        decimal_places=3,
        help_text="Days before the exposure whose values reduce the variance of the difference. "
        "0: no covariate.",
    )
    dimensions = forms.CharField(
        required=False,
        help_text="tenant or headers, separated by commas. Results are broken down by them.",
    )
    stratify_by = forms.CharField(
        required=False, help_text="Dimension to post-stratify estimates by. Empty: none."
    )

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if Experiment.objects.filter(name=name).exists():
            raise ValidationError(f"An experiment named {name} already exists.")
        return name

    def clean_tenants(self) -> list[str]:
        names = split_names(self.cleaned_data["tenants"])
        known = set(Tenant.objects.filter(name__in=names).values_list("name", flat=True))
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValidationError(f"Unknown tenants: {', '.join(unknown)}.")
        return names

    def clean_headers(self) -> dict[str, list[str]]:
        headers: dict[str, list[str]] = {}
        for line in filter(None, map(str.strip, self.cleaned_data["headers"].splitlines())):
            name, _, values = line.partition(":")
            if name.strip().lower() in headers:
                raise ValidationError(f"{name.strip()} appears twice.")
            split = [value.strip() for value in values.split(",") if value.strip()]
            headers[name.strip().lower()] = split
        checked: dict[str, list[str]] = _as_field_error(lambda: read_headers(headers))
        return checked

    def clean_dimensions(self) -> list[str]:
        names = [name.lower() for name in split_names(self.cleaned_data["dimensions"])]
        _as_field_error(lambda: check_settings(Experiment(dimensions=names)))
        return names

    def clean(self) -> dict[str, Any]:
        data = super().clean() or self.cleaned_data
        dimensions, stratum = data.get("dimensions"), data.get("stratify_by", "").strip().lower()
        if stratum and dimensions is not None and stratum not in dimensions:
            known = ", ".join(dimensions) or "none"
            self.add_error(
                "stratify_by", f"Unknown dimension {stratum!r}; expected one of {known}."
            )
        data["stratify_by"] = stratum
        return data

    def settings(self) -> dict[str, Any]:
        """Return the input in the units of the services."""
        data = self.cleaned_data
        return {
            "hypothesis": data["hypothesis"],
            "coverage_bp": basis_points(data["coverage"]),
            "holdout_bp": basis_points(data["holdout"]),
            "tenants": data["tenants"],
            "headers": data["headers"],
            "planned_units": data["planned_units"],
            "alpha_ppm": round(data["alpha"] * PERCENT_PPM),
            "covariate_s": round(data["covariate_days"] * DAY_S),
            "dimensions": data["dimensions"],
            "stratify_by": data["stratify_by"],
        }


class EditForm(DraftForm):
    """Form of an existing draft; its name cannot change."""

    name = None  # type: ignore[assignment]
    revision = forms.IntegerField(min_value=0, widget=forms.HiddenInput)

    @classmethod
    def of(cls, draft: Experiment, data: Any) -> EditForm:
        lines = [f"{name}: {', '.join(values)}" for name, values in draft.headers.items()]
        initial = {
            "revision": draft.revision,
            "hypothesis": draft.hypothesis,
            "coverage": f"{draft.coverage_bp / 100:g}",
            "holdout": f"{draft.holdout_bp / 100:g}",
            "tenants": ", ".join(draft.tenants),
            "headers": "\n".join(lines),
            "planned_units": draft.planned_units,
            "alpha": f"{draft.alpha_ppm / PERCENT_PPM:g}",
            "covariate_days": f"{draft.covariate_s / DAY_S:g}",
            "dimensions": ", ".join(draft.dimensions),
            "stratify_by": draft.stratify_by,
        }
        return cls(data, initial=initial)


def _as_field_error(check: Any) -> Any:
    """Return the result of `check`; convert Invalid into a ValidationError of the field."""
    try:
        return check()
    except Invalid as error:
        raise ValidationError(f"{error.sentence}.") from None
