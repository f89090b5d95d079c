"""Admin pages, mostly read-only: only services change states, so that each change has its event."""

from __future__ import annotations

from django.contrib import admin
from django.http import HttpRequest
from unfold.admin import ModelAdmin, TabularInline

from apps.experiments.models import (
    Experiment,
    ExperimentEvent,
    ExposureRow,
    Metric,
    MetricUse,
    OutcomeRow,
    RefusedOutcomes,
    ResultSnapshot,
    Variant,
    WeightChange,
)
from apps.experiments.rollout_models import RolloutExposure
from apps.lib.admin import ReadOnly


class VariantInline(ReadOnly, TabularInline):  # type: ignore[misc]
    model = Variant
    fields = ["position", "name", "version", "weight_bp", "is_control"]
    extra = 0


class MetricInline(ReadOnly, TabularInline):  # type: ignore[misc]
    model = MetricUse
    fields = ["position", "metric", "role", "margin", "mann_whitney"]
    extra = 0


class WeightInline(ReadOnly, TabularInline):  # type: ignore[misc]
    model = WeightChange
    fields = ["at", "weights_bp", "reason", "actor"]
    extra = 0


class EventInline(ReadOnly, TabularInline):  # type: ignore[misc]
    model = ExperimentEvent
    fields = ["at", "from_state", "to_state", "reason", "actor"]
    extra = 0


@admin.register(Metric)
class MetricAdmin(ModelAdmin):  # type: ignore[misc]
    list_display = ["name", "kind", "source", "direction", "description"]
    list_filter = ["kind", "source"]
    search_fields = ["name"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        # A metric's fields must fit together; only the service behind pages and REST checks that.
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Metric | None = None) -> bool:
        return False

    def get_readonly_fields(self, request: HttpRequest, obj: Metric | None = None) -> list[str]:
        # Outcomes were checked against its kind, and clients use its name.
        return [field.name for field in Metric._meta.fields if field.name != "description"]


@admin.register(Experiment)
class ExperimentAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    list_display = ["name", "state", "conclusion", "model", "created_by", "created_at", "ended_at"]
    list_filter = ["state", "conclusion", "model"]
    search_fields = ["name", "hypothesis"]
    list_select_related = ["model"]
    inlines = [VariantInline, MetricInline, WeightInline, EventInline]


@admin.register(ResultSnapshot)
class ResultSnapshotAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    list_display = ["id", "experiment", "at", "note", "actor"]
    list_filter = ["experiment"]
    list_select_related = ["experiment"]


@admin.register(ExposureRow)
class ExposureAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    list_display = ["experiment", "unit", "variant_name", "version_number", "at", "crossed_over"]
    list_filter = ["experiment", "crossed_over"]
    search_fields = ["unit__exact"]
    # The table's only key; `id` has no index.
    ordering = ["experiment_id", "unit"]
    list_display_links = None
    list_select_related = ["experiment"]
    show_full_result_count = False


@admin.register(RolloutExposure)
class RolloutExposureAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    list_display = ["rollout", "unit", "canary_at", "control_at"]
    search_fields = ["rollout__id__exact", "unit__exact"]
    list_select_related = ["rollout__model", "rollout__target__model"]
    show_full_result_count = False


@admin.register(OutcomeRow)
class OutcomeAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    list_display = ["event_id", "unit", "metric", "value", "occurred_at", "received_at"]
    list_filter = ["metric"]
    search_fields = ["event_id__exact", "unit__exact"]
    list_select_related = ["metric"]
    show_full_result_count = False


@admin.register(RefusedOutcomes)
class RefusedOutcomesAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    list_display = ["metric_name", "reason", "sender", "via", "count", "last_at"]
    search_fields = ["metric_name", "reason", "sender", "via"]
