"""URLs of the overview, models, the fleet and tenants."""

from __future__ import annotations

from django.urls import path

from apps.rollouts.views import (
    fleet,
    history,
    promotion,
    retirement,
    serving,
    settings,
    tenants,
)

urlpatterns = [
    path("", serving.overview, name="overview"),
    path("models/<str:name>/", serving.model, name="model"),
    path("models/<str:name>/charts/", serving.model_charts, name="model-charts"),
    path("models/<str:name>/promote/", promotion.promote, name="promote"),
    path("models/<str:name>/rollback/", serving.rollback, name="model-rollback"),
    path("models/<str:name>/settings/", settings.model_settings, name="model-settings"),
    path(
        "models/<str:name>/versions/<int:number>/warmup/",
        settings.version_warmup,
        name="version-warmup",
    ),
    path("models/<str:name>/retirement/", retirement.model_retirement, name="model-retirement"),
    *[
        path(
            f"models/<str:name>/{action}/",
            retirement.model_retire,
            {"action": action},
            name=f"model-{action}",
        )
        for action in retirement.ON_MODEL
    ],
    path("models/<str:name>/restore/", retirement.model_restore, name="model-restore"),
    path(
        "models/<str:name>/versions/<int:number>/retirement/",
        retirement.version_retirement,
        name="version-retirement",
    ),
    *[
        path(
            f"models/<str:name>/versions/<int:number>/{action}/",
            retirement.version_retire,
            {"action": action},
            name=f"version-{action}",
        )
        for action in retirement.ON_VERSION
    ],
    path(
        "models/<str:name>/versions/<int:number>/restore/",
        retirement.version_restore,
        name="version-restore",
    ),
    path("models/<str:name>/history/", history.serving_history, name="serving-history"),
    path("fleet/", fleet.fleet, name="fleet"),
    path("fleet/forget/", fleet.forget, name="instance-forget"),
    path("tenants/", tenants.tenant_list, name="tenant-list"),
    path("tenants/<str:name>/", tenants.tenant, name="tenant"),
    path("tenants/<str:name>/keys/", tenants.key_create, name="key-create"),
    path("tenants/<str:name>/keys/<int:pk>/revoke/", tenants.key_revoke, name="key-revoke"),
    path("tenants/<str:name>/delete/", tenants.tenant_delete, name="tenant-delete"),
    path("key-required/", tenants.key_required, name="key-required"),
]
