"""Pages of the serving settings of a model and the warm-up requests of a version."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods

from apps.lib.clock import database_now
from apps.lib.errors import InterlockError
from apps.lib.pages import PageRequest, page
from apps.models.access import actor_of, require_role
from apps.models.models import ModelVersion, RegisteredModel, Role
from apps.rollouts.serving_forms import SettingsForm, WarmupForm
from apps.rollouts.serving_policies import change_settings, change_warmup


@page
@require_http_methods(["GET", "HEAD", "POST"])
def model_settings(request: PageRequest, name: str) -> HttpResponse:
    model = get_object_or_404(RegisteredModel, name=name)
    require_role(request.user, model, Role.ADMIN)
    form = SettingsForm(request.POST or None, instance=model)
    context: dict[str, Any] = {"model": model, "form": form}
    if request.method != "POST":
        return render(request, "models/settings.html", context)
    if not form.is_valid():
        return render(request, "models/settings.html", context, status=400)
    try:
        change_settings(model=model, **form.settings(), actor=actor_of(request), now=database_now())
    except InterlockError as error:
        context["refusal"] = error.message
        return render(request, "models/settings.html", context, status=error.status)
    messages.success(request, "The serving settings are changed and published.")
    return redirect("model", name=name)


@page
@require_http_methods(["GET", "HEAD", "POST"])
def version_warmup(request: PageRequest, name: str, number: int) -> HttpResponse:
    versions = ModelVersion.objects.select_related("model")
    version = get_object_or_404(versions, model__name=name, number=number)
    require_role(request.user, version.model, Role.ADMIN)
    is_sent = request.method == "POST"
    form = WarmupForm(request.POST if is_sent else None, initial=WarmupForm.initial_of(version))
    context: dict[str, Any] = {"model": version.model, "version": version, "form": form}
    if not is_sent:
        return render(request, "models/warmup.html", context)
    if not form.is_valid():
        return render(request, "models/warmup.html", context, status=400)
    try:
        change_warmup(
            version=version,
            requests=form.cleaned_data["requests"],
            actor=actor_of(request),
            now=database_now(),
        )
    except InterlockError as error:
        context["refusal"] = error.message
        return render(request, "models/warmup.html", context, status=error.status)
    messages.success(request, "The warm-up requests are changed and published.")
    return redirect("version", name=name, number=number)
