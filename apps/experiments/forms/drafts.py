"""The form of a draft but for its tables of variants and metrics."""

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
    """Everything that a draft says once; what was typed is kept whatever is wrong with it."""

    name = forms.CharField(max_length=100, validators=[valid_name])
    hypothesis = forms.CharField(
        required=False, max_length=10_000, widget=forms.Textarea(attrs=TEXT)
    )
    coverage = percent_field(
        "Coverage (%)", initial=100, help_text="Share of the units meant that take part."
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
        help_text="Names, separated by commas or lines. Empty: the requests of all tenants.",
    )
    headers = forms.CharField(
        required=False,
        widget=forms.Textarea(attrs=TEXT),
        help_text="One a line, with the values that a request may carry: x-country: de, at.",
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
        min_value=0.0001,
        max_value=ALPHA_PPM_MAX // PERCENT_PPM,
        decimal_places=4,
    )
    covariate_days = forms.DecimalField(
        label="Days before, for CUPED",
        initial=0,
        min_value=0,
        max_value=COVARIATE_MAX_S // DAY_S,
        decimal_places=3,
        help_text="Each unit's own values in so many days before its exposure make the same "
        "difference known more exactly. 0: none.",
    )
    dimensions = forms.CharField(
        required=False,
        help_text="tenant, or headers, separated by commas: results are broken down by them.",
    )
    stratify_by = forms.CharField(
        required=False, help_text="The one of them to post-stratify estimates by, if any."
    )

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if Experiment.objects.filter(name=name).exists():
            raise ValidationError(f"An experiment named {name} exists already.")
        return name

    def clean_tenants(self) -> list[str]:
        names = split_names(self.cleaned_data["tenants"])
        known = set(Tenant.objects.filter(name__in=names).values_list("name", flat=True))
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValidationError(f"There is no tenant {', '.join(unknown)}.")
        return names

    def clean_headers(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for line in filter(None, map(str.strip, self.cleaned_data["headers"].splitlines())):
            name, _, values = line.partition(":")
            if name.strip().lower() in found:
                raise ValidationError(f"{name.strip()} is named twice.")
            split = [value.strip() for value in values.split(",") if value.strip()]
            found[name.strip().lower()] = split
        checked: dict[str, list[str]] = _checked(lambda: read_headers(found))
        return checked

    def clean_dimensions(self) -> list[str]:
        names = [name.lower() for name in split_names(self.cleaned_data["dimensions"])]
        _checked(lambda: check_settings(Experiment(dimensions=names)))
        return names

    def clean(self) -> dict[str, Any]:
        given = super().clean() or self.cleaned_data
        dimensions, stratum = given.get("dimensions"), given.get("stratify_by", "").strip().lower()
        if stratum and dimensions is not None and stratum not in dimensions:
            known = ", ".join(dimensions) or "none"
            self.add_error("stratify_by", f"unknown dimension {stratum}; expected one of {known}.")
        given["stratify_by"] = stratum
        return given

    def settings(self) -> dict[str, Any]:
        """Return what was typed in the units of the services."""
        given = self.cleaned_data
        return {
            "hypothesis": given["hypothesis"],
            "coverage_bp": basis_points(given["coverage"]),
            "holdout_bp": basis_points(given["holdout"]),
            "tenants": given["tenants"],
            "headers": given["headers"],
            "planned_units": given["planned_units"],
            "alpha_ppm": round(given["alpha"] * PERCENT_PPM),
            "covariate_s": round(given["covariate_days"] * DAY_S),
            "dimensions": given["dimensions"],
            "stratify_by": given["stratify_by"],
        }


class EditForm(DraftForm):
    """The same for a draft that is there; its name stays."""

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


def _checked(check: Any) -> Any:
    """Return what `check` returns; what it refuses is a mistake of this field."""
    try:
        return check()
    except Invalid as error:
        told = error.message.partition(": ")[2] or error.message
        raise ValidationError(told[0].upper() + told[1:] + ".") from None
