from __future__ import annotations

from django.urls import path

from apps.experiments import views

urlpatterns = [
    path("", views.experiment_list, name="experiment-list"),
    path("new/", views.experiment_new, name="experiment-new"),
    path("metrics/new/", views.metric_new, name="metric-new"),
    path("<str:name>/", views.experiment, name="experiment"),
    path("<str:name>/live/", views.experiment, name="experiment-live"),
    path("<str:name>/start/", views.start, name="experiment-start"),
    path("<str:name>/stop/", views.stop, name="experiment-stop"),
]
