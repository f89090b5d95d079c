"""Read-mostly admin of rollouts: phases change through the services only. Plans may be edited."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.core.exceptions import ValidationError
from django.forms import BaseInlineFormSet
from django.http import HttpRequest
from unfold.admin import ModelAdmin, TabularInline

from apps.lib.admin import ReadOnly
from apps.lib.errors import Invalid
from apps.rollouts.models import (
    BreakerTripRecord,
    Evaluation,
    Instance,
    Plan,
    PlanStep,
    PublishedTable,
    Rollout,
    RolloutEvent,
)
from apps.rollouts.plans import PlanDocument, StepDocument, check_plan


class StepInlineFormSet(BaseInlineFormSet):  # type: ignore[type-arg]
    """Holds the steps to the rule that the plan form and the API hold them to."""

    def clean(self) -> None:
        super().clean()
        if any(self.errors):
            return
        kept = [form.cleaned_data for form in self.forms if form.cleaned_data.get("weight_bp")]
        kept = [data for data in kept if not data.get("DELETE")]
        steps = [
            StepDocument(weight_bp=data["weight_bp"], checks=tuple(data["checks"] or ()))
            for data in sorted(kept, key=lambda data: data["position"])
        ]
        try:
            check_plan(PlanDocument(name=str(self.instance), steps=tuple(steps)))
        except Invalid as error:
            raise ValidationError(error.message) from None


class StepInline(TabularInline):  # type: ignore[misc]
    model = PlanStep
    formset = StepInlineFormSet
    fields = ["position", "weight_bp", "bake_s", "requests_min", "checks"]
    extra = 0


@admin.register(Plan)
class PlanAdmin(ModelAdmin):  # type: ignore[misc]
    list_display = ["name", "is_default", "time_scale_permille", "margin_bp", "alpha_ppm"]
    search_fields = ["name"]
    inlines = [StepInline]


class EventInline(ReadOnly, TabularInline):  # type: ignore[misc]
    model = RolloutEvent
    fields = ["at", "from_state", "to_state", "weight_bp", "reason", "actor"]
    extra = 0


@admin.register(Rollout)
class RolloutAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    list_display = ["target", "kind", "phase", "weight_bp", "started_by", "started_at", "ended_at"]
    list_filter = ["phase", "kind", "model"]
    search_fields = ["model__name", "started_by", "reason"]
    list_select_related = ["target__model"]
    inlines = [EventInline]


@admin.register(Evaluation)
class EvaluationAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    list_display = ["at", "rollout_id", "step_index", "check_name", "verdict", "reason"]
    list_filter = ["check_name", "verdict"]
    ordering = ["-id"]


@admin.register(PublishedTable)
class PublishedTableAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    list_display = ["generation", "published_at", "reason", "actor", "digest"]
    fields = ["generation", "published_at", "reason", "actor", "digest", "text"]
    readonly_fields = ["text"]

    @admin.display(description="document")
    def text(self, table: PublishedTable) -> str:
        return bytes(table.document).decode()

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).defer("document")


@admin.register(Instance)
class InstanceAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    list_display = [
        "name",
        "applied_generation",
        "refused_generation",
        "pinned",
        "reported_at",
        "boot",
    ]


@admin.register(BreakerTripRecord)
class BreakerTripAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    list_display = ["last_at", "model_name", "version_number", "instance", "count", "reason"]
