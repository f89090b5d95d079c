"""Forms of the registry's pages."""

from __future__ import annotations

from typing import Any

from django import forms
from django.core.exceptions import ValidationError

from apps.lib.errors import Invalid
from apps.lib.parsing import load_json
from apps.models.metadata import Metadata
from apps.models.warmup import WARMUP_BYTES_MAX
from contract.names import NAME_PATTERN, NAME_RULE

CHART_SPANS = {"15": "15 minutes", "60": "1 hour", "360": "6 hours"}


class ChartSpanForm(forms.Form):
    """The time span of a model's charts, in minutes."""

    span = forms.ChoiceField(choices=list(CHART_SPANS.items()))


class RegisterForm(forms.Form):
    """A version to register: its model, its metadata, and its file or URI.

    The file comes last: if it is too large, all other fields were read.
    """

    model = forms.RegexField(
        NAME_PATTERN,
        max_length=100,
        help_text="An existing model, or a new name: the first version creates the model.",
        error_messages={"invalid": f"A name has {NAME_RULE}."},
    )
    semantic_tag = forms.CharField(
        required=False, max_length=50, label="Semantic tag", help_text="Example: v1.2.3."
    )
    description = forms.CharField(required=False, widget=forms.Textarea(attrs={"rows": 2}))
    metrics = forms.CharField(
        required=False,
        label="Training metrics",
        widget=forms.Textarea(attrs={"rows": 3, "class": "mono", "spellcheck": "false"}),
        help_text="One per line: accuracy=0.97",
    )
    parameters = forms.CharField(
        required=False,
        label="Hyper-parameters",
        widget=forms.Textarea(attrs={"rows": 3, "class": "mono", "spellcheck": "false"}),
        help_text="One per line: C=1.0",
    )
    dataset_digest = forms.CharField(required=False, max_length=200, label="Dataset digest")
    run_url = forms.CharField(
        required=False, max_length=1_000, label="URL of the run", help_text="Example: a CI job."
    )
    warmup = forms.CharField(
        required=False,
        max_length=4 * WARMUP_BYTES_MAX,
        label="Warm-up requests",
        widget=forms.Textarea(attrs={"rows": 3, "class": "mono", "spellcheck": "false"}),
        help_text="JSON: a list of requests, each a list of inputs with name, datatype, shape and "
        "data. Default: one request of zeros.",
    )
    uri = forms.CharField(
        required=False,
        max_length=1_000,
        label="URI",
        help_text="Instead of a file. Examples: models:/NAME/NUMBER, runs:/RUN/PATH (MLflow).",
    )
    file = forms.FileField(
        required=False,
        label="ONNX file",
        widget=forms.ClearableFileInput(attrs={"accept": ".onnx"}),
    )
    external_data = forms.FileField(
        required=False,
        label="External data",
        help_text="Only if the weights of the model are in a separate file.",
    )

    def clean_metrics(self) -> dict[str, Any] | None:
        entries = _lines(self.cleaned_data["metrics"])
        try:
            return {name: float(value) for name, value in entries.items()} or None
        except ValueError as error:
            raise ValidationError(f"The value is not a number: {error}") from error

    def clean_parameters(self) -> dict[str, str] | None:
        return _lines(self.cleaned_data["parameters"]) or None

    def clean_warmup(self) -> Any:
        text = self.cleaned_data["warmup"].strip()
        try:
            return load_json(text, "This") if text else None
        except Invalid as error:
            raise ValidationError(error.message) from error

    def clean(self) -> dict[str, Any]:
        data = super().clean() or self.cleaned_data
        if bool(data.get("uri")) == bool(data.get("file")) and not self.errors:
            raise ValidationError("Choose a file or enter a URI, not both.")
        return data

    def metadata(self) -> Metadata:
        names = ("metrics", "parameters", "dataset_digest", "semantic_tag", "description")
        values = {name: self.cleaned_data[name] or None for name in (*names, "run_url")}
        return Metadata(**values, warmup=self.cleaned_data["warmup"])


def _lines(text: str) -> dict[str, str]:
    """Parse `name=value` lines. Raises ValidationError for any other line."""
    entries: dict[str, str] = {}
    for line in filter(None, (line.strip() for line in text.splitlines())):
        name, separator, value = line.partition("=")
        if not separator or not name.strip():
            raise ValidationError(f"A line must be name=value: {line[:100]}")
        entries[name.strip()] = value.strip()
    return entries


class AliasForm(forms.Form):
    """An alias for a version; the service validates the name."""

    alias = forms.CharField(max_length=100, label="Alias")
