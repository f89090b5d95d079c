"""Pages that change how a model is served: its settings, and a version's warm-up requests."""

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
    found = get_object_or_404(RegisteredModel, name=name)
    require_role(request.user, found, Role.ADMIN)
    form = SettingsForm(request.POST or None, instance=found)
    context: dict[str, Any] = {"model": found, "form": form}
    if request.method != "POST":
        return render(request, "models/settings.html", context)
    if not form.is_valid():
        return render(request, "models/settings.html", context, status=400)
    try:
        change_settings(model=found, **form.settings(), actor=actor_of(request), now=database_now())
    except InterlockError as error:
        context["refusal"] = error.message
        return render(request, "models/settings.html", context, status=error.status)
    messages.success(request, "The serving settings are changed, and published.")
    return redirect("model", name=name)


@page
@require_http_methods(["GET", "HEAD", "POST"])
def version_warmup(request: PageRequest, name: str, number: int) -> HttpResponse:
    versions = ModelVersion.objects.select_related("model")
    found = get_object_or_404(versions, model__name=name, number=number)
    require_role(request.user, found.model, Role.ADMIN)
    is_sent = request.method == "POST"
    form = WarmupForm(request.POST if is_sent else None, initial=WarmupForm.initial_of(found))
    context: dict[str, Any] = {"model": found.model, "version": found, "form": form}
    if not is_sent:
        return render(request, "models/warmup.html", context)
    if not form.is_valid():
        return render(request, "models/warmup.html", context, status=400)
    try:
        change_warmup(
            version=found,
            requests=form.cleaned_data["requests"],
            actor=actor_of(request),
            now=database_now(),
        )
    except InterlockError as error:
        context["refusal"] = error.message
        return render(request, "models/warmup.html", context, status=error.status)
    messages.success(request, "The warm-up requests are changed, and published.")
    return redirect("version", name=name, number=number)
