"""Pages of the registry: models, versions, registrations, syncs and aliases."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db.models import Count, Q
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from apps.lib.clock import database_now
from apps.lib.errors import InterlockError, Invalid
from apps.lib.pages import PageRequest, attempt, go_back, page, render_live, stamp_of
from apps.models.access import actor_of, has_role, require_role
from apps.models.aliases import move_alias
from apps.models.forms import AliasForm, RegisterForm
from apps.models.mlflow_links import registry_url, run_url
from apps.models.models import Deployment, ModelVersion, RegisteredModel, Registration, Role
from apps.models.registration_jobs import submit_file, submit_uri
from apps.models.registry import SyncReport, sync_now
from apps.models.selectors import (
    list_events,
    list_models,
    list_refused,
    shares_of,
    with_deployments,
)
from apps.models.services import retry_deployment
from apps.models.states import RegistryState
from apps.models.uploads import check_upload, uploaded_files


@page
@require_safe
def model_list(request: PageRequest) -> HttpResponse:
    shows_archived = request.GET.get("archived") == "1"
    states = [RegistryState.ACTIVE, *([RegistryState.ARCHIVED] if shows_archived else [])]
    kept = Count("versions", filter=~Q(versions__state=RegistryState.DELETED))
    models = list(list_models().filter(state__in=states).annotate(version_count=kept))
    context = {
        "shows_archived": shows_archived,
        "archived_count": RegisteredModel.objects.filter(state=RegistryState.ARCHIVED).count(),
        "rows": [(model, shares_of(model)) for model in models],
        "refused": list_refused(),
        "can_sync": has_role(request.user, None, Role.OPERATOR),
    }
    return render(request, "models/model_list.html", context)


@page
@require_safe
def version(request: PageRequest, name: str, number: int) -> HttpResponse:
    shown = get_object_or_404(
        ModelVersion.objects.select_related("model__stable"), model__name=name, number=number
    )
    row = with_deployments(shown.model.versions.filter(pk=shown.pk)).get()
    context = {
        "model": shown.model,
        "version": row,
        "events": list_events(shown),
        "is_stable": shown.model.stable_id == shown.pk,
        "run_url": run_url(shown),
        "registry_url": registry_url(shown),
        "can_operate": has_role(request.user, shown.model, Role.OPERATOR),
        "can_configure": has_role(request.user, shown.model, Role.ADMIN),
    }
    return render(request, "models/version.html", context)


@page
@require_POST
def registry_sync(request: PageRequest) -> HttpResponse:
    require_role(request.user, None, Role.OPERATOR)
    attempt(request, lambda: _describe_sync(sync_now()))
    return go_back(request, "model-list")


def _describe_sync(report: SyncReport) -> str:
    if not report.has_news:
        return "MLflow has no changes."
    parts = [f"Imported: {', '.join(report.imported) or 'nothing'}."]
    if report.refused:
        parts.append(f"Refused: {', '.join(report.refused)}; the reasons are below.")
    if report.waiting:
        parts.append(f"Not readable now, will be retried: {', '.join(report.waiting)}.")
    if report.pushed:
        parts.append(f"Written to MLflow: {', '.join(report.pushed)}.")
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
        return f"Loading {deployment} again."

    attempt(request, retry)
    return go_back(request, "model-list")


@page
@require_http_methods(["GET", "HEAD", "POST"])
def version_register(request: PageRequest) -> HttpResponse:
    """Register a version from a file or a URI."""
    is_sent = request.method == "POST"
    form = (
        RegisterForm(request.POST, request.FILES)
        if is_sent
        else RegisterForm(initial={"model": request.GET.get("model", "")})
    )
    # Without a model, the form is shown to every user; sending it needs the role.
    name = str(form["model"].value() or "")
    model = RegisteredModel.objects.filter(name=name).first()
    if is_sent or model is None:
        require_role(request.user, model, Role.OPERATOR)
    context: dict[str, Any] = {"form": form, "bytes_max": settings.ARTIFACT_BYTES_MAX}
    if not is_sent:
        return render(request, "models/register.html", context)
    try:
        check_upload(request)
        if not form.is_valid():
            return render(request, "models/register.html", context, status=400)
        row = _submit(request, form)
    except InterlockError as error:
        context["refusal"] = error.message
        return render(request, "models/register.html", context, status=error.status)
    return redirect("registration", pk=row.pk)


@page
@require_safe
def registration(request: PageRequest, pk: Any) -> HttpResponse:
    """Show a registration; live until it is settled."""
    row = get_object_or_404(Registration.objects.select_related("version__model"), pk=pk)
    return render_live(
        request,
        template="models/registration.html",
        fragment="models/_registration.html",
        stamp=stamp_of(row.state, row.stage, row.stage_at),
        context=lambda: {"row": row, "now": database_now()},
    )


def _submit(request: PageRequest, form: RegisterForm) -> Registration:
    data, actor, now = form.cleaned_data, actor_of(request), database_now()
    if data["uri"]:
        return submit_uri(
            name=data["model"], uri=data["uri"], metadata=form.metadata(), actor=actor, now=now
        )
    files = uploaded_files(data["file"], data["external_data"])
    return submit_file(
        name=data["model"], files=files, metadata=form.metadata(), actor=actor, now=now
    )


@page
@require_POST
def version_alias(request: PageRequest, name: str, number: int) -> HttpResponse:
    """Set an alias to this version."""
    versions = ModelVersion.objects.select_related("model")
    target = get_object_or_404(versions, model__name=name, number=number)
    require_role(request.user, target.model, Role.OPERATOR)
    form = AliasForm(request.POST)

    def move() -> str:
        if not form.is_valid():
            raise Invalid(f"Alias: {form.errors['alias'][0]}")
        alias = move_alias(name=form.cleaned_data["alias"], version=target, actor=actor_of(request))
        pending = " The next sync sets it in MLflow." if alias.is_pending else ""
        return f"Alias {alias.name} is set to {target}.{pending}"

    attempt(request, move)
    return redirect("version", name=name, number=number)
