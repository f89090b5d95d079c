"""URLs of imports of outcomes."""

from __future__ import annotations

from django.urls import path

from apps.experiments.views import imports

urlpatterns = [
    path("", imports.import_list, name="outcome-import"),
    path("<uuid:pk>/", imports.import_page, name="outcome-import-page"),
    path("<uuid:pk>/refused.csv", imports.refused_csv, name="outcome-import-refused"),
]
