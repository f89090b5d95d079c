"""Pages at the root that show what serves: the overview, a model, its promotion, the fleet."""

from __future__ import annotations

from django.urls import path

from apps.rollouts.views import fleet, serving

urlpatterns = [
    path("", serving.overview, name="overview"),
    path("models/<str:name>/", serving.model, name="model"),
    path("models/<str:name>/charts/", serving.model_charts, name="model-charts"),
    path("models/<str:name>/promote/", serving.promote, name="promote"),
    path("models/<str:name>/rollback/", serving.rollback, name="model-rollback"),
    path("fleet/", fleet.fleet, name="fleet"),
]
