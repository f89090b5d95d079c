"""Links to MLflow's pages, at the address for browsers."""

from __future__ import annotations

from urllib.parse import quote

from django.conf import settings

from apps.models.models import ModelVersion


def run_url(version: ModelVersion) -> str:
    """Return the URL of the training run: the stored one, or MLflow's page; empty for none."""
    if version.run_url:
        return version.run_url
    if not version.run_id or not settings.MLFLOW_PUBLIC_URL:
        return ""
    return f"{settings.MLFLOW_PUBLIC_URL}/#/runs/{quote(version.run_id, safe='')}"


def registry_url(version: ModelVersion) -> str:
    """Return the URL of the version in MLflow's registry; empty if it is not from MLflow."""
    if version.registry_number is None or not settings.MLFLOW_PUBLIC_URL:
        return ""
    name = quote(version.model.name, safe="")
    return f"{settings.MLFLOW_PUBLIC_URL}/#/models/{name}/versions/{version.registry_number}"
