"""URLs of the registry's pages. Pages that show traffic are in `apps.rollouts`, which is included
by name: this app must not import it."""

from __future__ import annotations

from django.urls import include, path

from apps.models import views

urlpatterns = [
    path("models/", views.model_list, name="model-list"),
    path("models/sync/", views.registry_sync, name="registry-sync"),
    path("models/<str:name>/versions/<int:number>/", views.version, name="version"),
    path(
        "models/<str:name>/versions/<int:number>/alias/", views.version_alias, name="version-alias"
    ),
    # Not below models/, where the path would be the name of a model.
    path("register/", views.version_register, name="version-register"),
    path("registrations/<uuid:pk>/", views.registration, name="registration"),
    path("deployments/<int:pk>/retry/", views.deployment_retry, name="deployment-retry"),
    path("", include("apps.rollouts.serving_urls")),
]
