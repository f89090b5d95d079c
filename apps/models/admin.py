"""Mostly read-only admin of the registry: serving state changes through the services only."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from unfold.admin import ModelAdmin, TabularInline

from apps.lib.admin import ReadOnly
from apps.models.access import actor_of
from apps.models.audit import record_audit
from apps.models.models import (
    Alias,
    ApiKey,
    AuditEntry,
    Deployment,
    DeploymentEvent,
    ModelRole,
    ModelVersion,
    RefusedImport,
    RegisteredModel,
    ServingCluster,
    ServingPolicy,
    Tenant,
)


class AliasInline(ReadOnly, TabularInline):  # type: ignore[misc]
    model = Alias
    fields = ["name", "version", "changed_at"]
    readonly_fields = ["changed_at"]
    extra = 0


class DeploymentEventInline(ReadOnly, TabularInline):  # type: ignore[misc]
    model = DeploymentEvent
    fields = ["at", "from_state", "to_state", "reason", "actor"]
    extra = 0


class RoleInline(TabularInline):  # type: ignore[misc]
    model = ModelRole
    fields = ["user", "role"]
    extra = 0


@admin.register(RegisteredModel)
class RegisteredModelAdmin(ModelAdmin):  # type: ignore[misc]
    """Roles are assigned here; serving settings change on the page of the model or by the API."""

    list_display = ["name", "stable", "previous_stable", "timeout_ms", "max_batch_size"]
    search_fields = ["name", "description"]
    list_select_related = ["stable__model", "previous_stable__model"]
    inlines = [RoleInline, AliasInline]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return [field.name for field in RegisteredModel._meta.fields]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(ModelVersion)
class ModelVersionAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    list_display = ["__str__", "source", "semantic_tag", "created_by", "created_at", "imported_at"]
    list_filter = ["source", "model"]
    search_fields = ["model__name", "semantic_tag", "run_id"]
    list_select_related = ["model"]


@admin.register(RefusedImport)
class RefusedImportAdmin(ModelAdmin):  # type: ignore[misc]
    """After a refused import is deleted, the next sync reads the version again."""

    list_display = ["model_name", "number", "reason", "at"]
    search_fields = ["model_name", "reason"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(ServingCluster)
class ServingClusterAdmin(ModelAdmin):  # type: ignore[misc]
    """The next tick publishes a change, within two seconds."""

    list_display = ["name", "endpoints", "is_default", "hedge_after_ms", "repository_path"]

    def save_model(
        self, request: HttpRequest, obj: ServingCluster, form: Any, change: bool
    ) -> None:
        super().save_model(request, obj, form, change)
        record_audit(
            actor=actor_of(request),
            action="cluster.changed" if change else "cluster.created",
            target=obj.name,
            before={name: form.initial.get(name) for name in form.changed_data} if change else {},
            after={name: form.cleaned_data[name] for name in form.changed_data},
        )


class ApiKeyInline(ReadOnly, TabularInline):  # type: ignore[misc]
    model = ApiKey
    fields = ["name", "hint", "created_at", "created_by", "revoked_at"]
    extra = 0


@admin.register(Tenant)
class TenantAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    """Read-only: quotas and keys change on the tenants' pages, which publish and audit."""

    list_display = ["name", "requests_per_s", "burst", "concurrency_max", "priority"]
    search_fields = ["name"]
    inlines = [ApiKeyInline]


@admin.register(ServingPolicy)
class ServingPolicyAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    list_display = ["__str__", "key_required"]


@admin.register(Deployment)
class DeploymentAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    list_display = ["__str__", "state", "reason", "changed_at"]
    list_filter = ["state", "cluster", "version__model"]
    list_select_related = ["version__model", "cluster"]
    inlines = [DeploymentEventInline]


@admin.register(ModelRole)
class ModelRoleAdmin(ModelAdmin):  # type: ignore[misc]
    list_display = ["user", "model", "role"]
    list_filter = ["role", "model"]
    search_fields = ["user__username", "model__name"]
    list_select_related = ["user", "model"]


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    list_display = ["at", "actor", "origin", "action", "target"]
    list_filter = ["action"]
    search_fields = ["actor", "target", "action"]
    date_hierarchy = "at"
