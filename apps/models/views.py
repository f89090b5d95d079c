"""Pages of the registry: the list of models, a version, and what brings them here."""

from __future__ import annotations

from django.conf import settings
from django.db.models import Count
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_POST, require_safe

from apps.lib.clock import database_now
from apps.lib.pages import PageRequest, attempt, go_back, page
from apps.models.access import actor_of, has_role, require_role
from apps.models.models import Deployment, ModelVersion, Role
from apps.models.registry import SyncReport, sync_registry
from apps.models.selectors import (
    list_events,
    list_models,
    list_refused,
    list_versions,
    shares_of,
)
from apps.models.services import retry_deployment


@page
@require_safe
def model_list(request: PageRequest) -> HttpResponse:
    models = list(list_models().annotate(version_count=Count("versions")))
    context = {
        "rows": [(model, shares_of(model)) for model in models],
        "refused": list_refused(),
        "can_sync": has_role(request.user, None, Role.OPERATOR),
    }
    return render(request, "models/model_list.html", context)


@page
@require_safe
def version(request: PageRequest, name: str, number: int) -> HttpResponse:
    found = get_object_or_404(
        ModelVersion.objects.select_related("model__stable"), model__name=name, number=number
    )
    row = list_versions(found.model).get(pk=found.pk)
    context = {
        "model": found.model,
        "version": row,
        "events": list_events(found),
        "is_stable": found.model.stable_id == found.pk,
        "registry_url": settings.MLFLOW_TRACKING_URI.rstrip("/"),
        "can_operate": has_role(request.user, found.model, Role.OPERATOR),
        "can_configure": has_role(request.user, found.model, Role.ADMIN),
    }
    return render(request, "models/version.html", context)


@page
@require_POST
def registry_sync(request: PageRequest) -> HttpResponse:
    require_role(request.user, None, Role.OPERATOR)
    attempt(request, lambda: _told(sync_registry()))
    return go_back(request, "model-list")


def _told(report: SyncReport) -> str:
    if not (report.imported or report.refused or report.aliases):
        return "The registry has nothing new."
    parts = [f"Imported: {', '.join(report.imported) or 'nothing'}."]
    if report.refused:
        parts.append(f"Refused: {', '.join(report.refused)}; the reasons are below.")
    return " ".join(parts)


@page
@require_POST
def deployment_retry(request: PageRequest, pk: int) -> HttpResponse:
    deployment = get_object_or_404(
        Deployment.objects.select_related("version__model", "cluster"), pk=pk
    )
    require_role(request.user, deployment.version.model, Role.OPERATOR)

    def retry() -> str:
        retry_deployment(deployment=deployment, actor=actor_of(request), now=database_now())
        return f"{deployment} is being loaded again."

    attempt(request, retry)
    return go_back(request, "model-list")
