"""Forms of model settings, warm-up requests, tenants and API keys.

Field limits come from the database models; the services validate.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from django import forms
from django.core.exceptions import ValidationError

from apps.lib.errors import Invalid
from apps.lib.parsing import load_json
from apps.models.models import ModelVersion, RegisteredModel, Tenant
from apps.models.warmup import WARMUP_BYTES_MAX
from apps.rollouts.candidates import plan_names
from apps.rollouts.serving_policies import SETTINGS
from apps.rollouts.tenants import QUOTA
from contract.names import NAME_RULE

if TYPE_CHECKING:
    ModelFormOfSettings = forms.ModelForm[RegisteredModel]
    ModelFormOfTenant = forms.ModelForm[Tenant]
else:
    ModelFormOfSettings = ModelFormOfTenant = forms.ModelForm

CACHE_OFF, CACHE_OWN, CACHE_SHARED = "off", "own", "shared"


class SettingsForm(ModelFormOfSettings):
    """Serving settings of a model. Read the result with `settings`; the form saves nothing."""

    cache = forms.ChoiceField(
        label="Cache",
        choices=[
            (CACHE_OFF, "Off"),
            (CACHE_OWN, "In each instance"),
            (CACHE_SHARED, "In each instance and in Redis"),
        ],
        help_text="Equal requests may get a cached response of the same version.",
    )

    # The cache fields are shown together.
    field_order = [*SETTINGS[: SETTINGS.index("cache_ttl_s")], "cache", "cache_ttl_s"]

    class Meta:
        model = RegisteredModel
        fields = [name for name in SETTINGS if name != "cache_shared"]
        widgets = {
            "description": forms.Textarea(attrs={"rows": 2}),
            "candidate_plan": forms.Select(),
        }
        labels = {
            "timeout_ms": "Timeout, ms",
            "max_batch_size": "Maximum batch size, rows",
            "max_queue_delay_us": "Maximum batching delay, µs",
            "max_queue_size": "Maximum queue size, rows",
            "breaker_window": "Breaker: window, responses",
            "breaker_failures": "Breaker: failures to open",
            "breaker_open_ms": "Breaker: open time, ms",
            "cache_ttl_s": "Cache lifetime, s",
            "unit_header": "Unit header",
            "unit_parameter": "Unit request parameter",
            "candidate_plan": "Plan for candidates",
        }
        help_texts = {
            "timeout_ms": "A request without a response by then is refused.",
            "max_batch_size": "Triton applies it when it loads a version.",
            "max_queue_delay_us": "The maximum time that a row waits for others. An idle version "
            "gets it at once.",
            "max_queue_size": "When it is full, requests get 503 at once. At least one batch.",
            "breaker_window": "The number of recent responses per version that count.",
            "breaker_failures": "At this number of failures its traffic goes to stable.",
            "breaker_open_ms": "How long it stays open before the version is tried again.",
            "cache_ttl_s": "Required unless the cache is off.",
            "candidate_plan": "Starts a rollout when the alias candidate moves, in MLflow or here.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.cache_ttl_s is not None:
            self.initial["cache"] = CACHE_SHARED if self.instance.cache_shared else CACHE_OWN
        # The current value stays a choice, so that a renamed plan is visible.
        names = {*plan_names(), self.instance.candidate_plan} - {""}
        choices = [("", "None: do not start"), *((name, name) for name in sorted(names))]
        self.fields["candidate_plan"].widget.choices = choices

    def clean(self) -> dict[str, Any]:
        data = super().clean() or self.cleaned_data
        if data.get("cache") == CACHE_OFF:
            data["cache_ttl_s"] = None
        elif data.get("cache_ttl_s") is None and "cache_ttl_s" not in self.errors:
            self.add_error("cache_ttl_s", "Enter the cache lifetime.")
        return data

    def settings(self) -> dict[str, Any]:
        """Return the values by the parameter names of the service."""
        data = self.cleaned_data
        shared = data["cache"] == CACHE_SHARED
        return {**{name: data[name] for name in self.Meta.fields}, "cache_shared": shared}


class WarmupForm(forms.Form):
    """The warm-up requests of a version as JSON."""

    requests = forms.CharField(
        label="Requests",
        required=False,
        # The service refuses values that are too large, with its own message.
        max_length=4 * WARMUP_BYTES_MAX,
        widget=forms.Textarea(attrs={"rows": 16, "class": "mono", "spellcheck": "false"}),
        help_text="A list of requests; each is a list of inputs with name, datatype, shape and "
        f"data. "
        f"At most {WARMUP_BYTES_MAX // 1024} KiB. Empty: one request of zeros.",
    )

    @classmethod
    def initial_of(cls, version: ModelVersion) -> dict[str, Any]:
        return {"requests": json.dumps(version.warmup, indent=1) if version.warmup else ""}

    def clean_requests(self) -> Any:
        text = self.cleaned_data["requests"].strip()
        try:
            return load_json(text or "[]", "This")
        except Invalid as error:
            raise ValidationError(error.message) from error


class QuotaForm(ModelFormOfTenant):
    """The quota of a tenant. Read `cleaned_data`; the form saves nothing."""

    class Meta:
        model = Tenant
        fields = list(QUOTA)
        labels = {
            "requests_per_s": "Requests per second",
            "burst": "Burst, requests",
            "concurrency_max": "Maximum concurrent requests",
        }
        help_texts = {
            "requests_per_s": "Empty: no limit.",
            "burst": "After an idle time. Empty: the requests of one second.",
            "concurrency_max": "Empty: no limit.",
            "priority": "Under overload, low priority waits longest, but is never starved.",
        }


class TenantForm(QuotaForm):
    class Meta(QuotaForm.Meta):
        fields = ["name", *QuotaForm.Meta.fields]
        help_texts = {**QuotaForm.Meta.help_texts, "name": f"{NAME_RULE.capitalize()}."}


class KeyForm(forms.Form):
    name = forms.CharField(
        max_length=100, help_text="The application that uses the key, and where."
    )
    models = forms.MultipleChoiceField(
        required=False, help_text="The models that the key may use. No selection: all models."
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names = RegisteredModel.objects.order_by("name").values_list("name", flat=True)
        choice = self.fields["models"]
        assert isinstance(choice, forms.MultipleChoiceField)
        choice.choices = [(name, name) for name in names]
