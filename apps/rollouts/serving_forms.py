"""Forms of what changes how requests are served: a model's settings, warm-up, tenants, API keys.

Limits stand in the models' fields; the services decide.
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
    """How a model is served; read it with `settings`, it saves nothing."""

    cache = forms.ChoiceField(
        label="Cache",
        choices=[
            (CACHE_OFF, "Off"),
            (CACHE_OWN, "In each instance"),
            (CACHE_SHARED, "In each instance and in Redis"),
        ],
        help_text="The same input may get the same answer again, from the same version.",
    )

    # What belongs to the cache stands together.
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
            "max_batch_size": "Rows of a batch at most",
            "max_queue_delay_us": "Longest wait for a batch, µs",
            "max_queue_size": "Rows waiting at most",
            "breaker_window": "Breaker: answers looked at",
            "breaker_failures": "Breaker: failures that open it",
            "breaker_open_ms": "Breaker: open for, ms",
            "cache_ttl_s": "Cached answers live, s",
            "unit_header": "Header with the unit",
            "unit_parameter": "Request parameter with the unit",
            "candidate_plan": "Candidates start a rollout by",
        }
        help_texts = {
            "timeout_ms": "A request that cannot be answered by then is refused.",
            "max_batch_size": "Takes effect in Triton when a version is loaded.",
            "max_queue_delay_us": "A row waits no longer for others; an idle version is asked at "
            "once.",
            "max_queue_size": "Beyond it the answer is 503 at once. At least one batch.",
            "breaker_window": "Of a version's last so many answers …",
            "breaker_failures": "… so many failures send its traffic back to stable …",
            "breaker_open_ms": "… for so long, before it is tried again.",
            "cache_ttl_s": "Needed unless the cache is off.",
            "candidate_plan": "Whenever the alias candidate moves, in MLflow or here.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.cache_ttl_s is not None:
            self.initial["cache"] = CACHE_SHARED if self.instance.cache_shared else CACHE_OWN
        # The name that is set stays to be chosen, so that a plan renamed meanwhile shows.
        names = {*plan_names(), self.instance.candidate_plan} - {""}
        choices = [("", "None: nothing starts"), *((name, name) for name in sorted(names))]
        self.fields["candidate_plan"].widget.choices = choices

    def clean(self) -> dict[str, Any]:
        data = super().clean() or self.cleaned_data
        if data.get("cache") == CACHE_OFF:
            data["cache_ttl_s"] = None
        elif data.get("cache_ttl_s") is None and "cache_ttl_s" not in self.errors:
            self.add_error("cache_ttl_s", "Say how long an answer may be given again.")
        return data

    def settings(self) -> dict[str, Any]:
        """Return what was typed, by the names that the service takes."""
        data = self.cleaned_data
        shared = data["cache"] == CACHE_SHARED
        return {**{name: data[name] for name in self.Meta.fields}, "cache_shared": shared}


class WarmupForm(forms.Form):
    """The warm-up requests of a version, as JSON."""

    requests = forms.CharField(
        label="Requests",
        required=False,
        # What is too large is refused by the service, in its words.
        max_length=4 * WARMUP_BYTES_MAX,
        widget=forms.Textarea(attrs={"rows": 16, "class": "mono", "spellcheck": "false"}),
        help_text="A list of requests, each a list of inputs with name, datatype, shape and data. "
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
    """How much a tenant may ask; read `cleaned_data`, it saves nothing."""

    class Meta:
        model = Tenant
        fields = list(QUOTA)
        labels = {
            "requests_per_s": "Requests per second",
            "burst": "Requests at once",
            "concurrency_max": "Requests under way at most",
        }
        help_texts = {
            "requests_per_s": "Empty: no limit.",
            "burst": "After a rest. Empty: as many as a second brings.",
            "concurrency_max": "Empty: no limit.",
            "priority": "When there is too much to do, low waits longest; it is never starved.",
        }


class TenantForm(QuotaForm):
    class Meta(QuotaForm.Meta):
        fields = ["name", *QuotaForm.Meta.fields]
        help_texts = {**QuotaForm.Meta.help_texts, "name": f"{NAME_RULE.capitalize()}."}


class KeyForm(forms.Form):
    name = forms.CharField(max_length=100, help_text="Which application will use it, and where.")
    models = forms.MultipleChoiceField(
        required=False, help_text="The models that it opens. None chosen: all of them."
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names = RegisteredModel.objects.order_by("name").values_list("name", flat=True)
        choice = self.fields["models"]
        assert isinstance(choice, forms.MultipleChoiceField)
        choice.choices = [(name, name) for name in names]
