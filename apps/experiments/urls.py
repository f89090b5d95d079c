from __future__ import annotations

from django.urls import path

from apps.experiments.views import (
    action_forms,
    actions,
    drafts,
    lists,
    metrics,
    power,
    results,
    snapshots,
)
from apps.experiments.views.versions import version_outcomes

urlpatterns = [
    path("", lists.experiment_list, name="experiment-list"),
    path("new/", drafts.experiment_new, name="experiment-new"),
    path("metrics/", metrics.metric_list, name="metric-list"),
    path("metrics/new/", metrics.metric_new, name="metric-new"),
    path("metrics/<str:name>/", metrics.metric, name="metric"),
    path("metrics/<str:name>/edit/", metrics.metric_edit, name="metric-edit"),
    path("metrics/<str:name>/delete/", metrics.metric_delete, name="metric-delete"),
    path("of-version/<str:name>/<int:number>/", version_outcomes, name="version-outcomes"),
    path("<str:name>/", results.experiment, name="experiment"),
    path("<str:name>/live/", results.experiment, name="experiment-live"),
    path("<str:name>/results.csv", results.results_csv, name="experiment-csv"),
    path("<str:name>/results.json", results.results_json, name="experiment-json"),
    path("<str:name>/edit/", drafts.experiment_edit, name="experiment-edit"),
    path("<str:name>/delete/", actions.delete, name="experiment-delete"),
    path("<str:name>/start/", actions.start, name="experiment-start"),
    path("<str:name>/pause/", actions.pause, name="experiment-pause"),
    path("<str:name>/resume/", actions.resume, name="experiment-resume"),
    path("<str:name>/stop/", actions.stop, name="experiment-stop"),
    path("<str:name>/abandon/", actions.abandon, name="experiment-abandon"),
    path("<str:name>/refresh/", actions.refresh, name="experiment-refresh"),
    path("<str:name>/power/", power.power, name="experiment-power"),
    path("<str:name>/ship/", action_forms.ship, name="experiment-ship"),
    path("<str:name>/weights/", action_forms.weights, name="experiment-weights"),
    path("<str:name>/snapshots/", snapshots.snapshot_new, name="experiment-snapshots"),
    path("<str:name>/snapshots/<uuid:pk>/", snapshots.snapshot, name="experiment-snapshot"),
    path(
        "<str:name>/snapshots/<uuid:pk>/results.csv",
        snapshots.snapshot_csv,
        name="experiment-snapshot-csv",
    ),
    path(
        "<str:name>/snapshots/<uuid:pk>/results.json",
        snapshots.snapshot_json,
        name="experiment-snapshot-json",
    ),
]
