"""Admin of rollouts, read-only except for plans: phases change through the services only."""

from __future__ import annotations

from typing import Any

import msgspec
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.forms import BaseInlineFormSet
from django.http import HttpRequest
from unfold.admin import ModelAdmin, TabularInline

from apps.lib.admin import ReadOnly
from apps.lib.errors import Invalid
from apps.models.access import actor_of
from apps.models.audit import record_audit
from apps.rollouts.models import (
    BreakerTripRecord,
    Evaluation,
    FreezeWindow,
    Instance,
    Plan,
    PlanStep,
    PublishedTable,
    Quarantine,
    Release,
    Rollout,
    RolloutEvent,
    RolloutPolicy,
    ServingChange,
    TrafficAlarm,
)
from apps.rollouts.plans import (
    PlanDocument,
    check_plan,
    document_of,
    plan_settings,
    step_settings,
    to_json,
)


class StepInlineFormSet(BaseInlineFormSet):  # type: ignore[type-arg]
    """Validates the steps with the same function as the plan form and the API."""

    def clean(self) -> None:
        super().clean()
        if any(self.errors):
            return
        kept = [form.cleaned_data for form in self.forms if "weight_bp" in form.cleaned_data]
        kept = [data for data in kept if not data.get("DELETE")]
        steps = [
            {name: data[name] for name in step_settings()}
            for data in sorted(kept, key=lambda data: data["position"])
        ]
        plan = {name: getattr(self.instance, name) for name in plan_settings()}
        try:
            check_plan(msgspec.convert({**plan, "steps": steps}, PlanDocument))
        except msgspec.ValidationError as error:
            raise ValidationError(f"The plan is not valid: {error}.") from None
        except Invalid as error:
            raise ValidationError(error.message) from None


class StepInline(TabularInline):  # type: ignore[misc]
    model = PlanStep
    formset = StepInlineFormSet
    fields = ["position", *step_settings()]
    extra = 0


@admin.register(Plan)
class PlanAdmin(ModelAdmin):  # type: ignore[misc]
    """Edits of plans are validated and audited; deletion is on their pages, with confirmation."""

    list_display = ["name", "is_default", "time_scale_permille", "margin_bp", "alpha_ppm"]
    search_fields = ["name"]
    inlines = [StepInline]

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        super().save_related(request, form, formsets, change)
        plan = Plan.objects.prefetch_related("steps").get(pk=form.instance.pk)
        record_audit(
            actor=actor_of(request),
            action="plan.changed" if change else "plan.created",
            target=plan.name,
            after=to_json(document_of(plan)),
        )


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


@admin.register(Release)
class ReleaseAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    list_display = ["name", "plan_name", "started_by", "started_at"]
    search_fields = ["name"]


@admin.register(Quarantine)
class QuarantineAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    list_display = ["version", "at", "reason"]
    list_select_related = ["version__model"]


@admin.register(FreezeWindow)
class FreezeWindowAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    list_display = ["model", "starts_at", "ends_at", "is_weekly", "reason", "created_by"]
    list_select_related = ["model"]


@admin.register(RolloutPolicy)
class RolloutPolicyAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    list_display = ["id", "concurrent_max"]


@admin.register(ServingChange)
class ServingChangeAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    list_display = ["at", "model_name", "stable", "generation", "reason", "actor"]
    search_fields = ["model_name"]


@admin.register(TrafficAlarm)
class TrafficAlarmAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    list_display = ["last_at", "kind", "model_name", "version_number", "instance", "reason"]
    list_filter = ["kind"]
