"""The promotion page: choose and compare versions, show obstacles, start the rollout."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods

from apps.lib.clock import database_now
from apps.lib.errors import InterlockError
from apps.lib.pages import PageRequest, page
from apps.models.access import actor_of, has_role, require_role
from apps.models.models import ModelVersion, RegisteredModel, Role
from apps.models.selectors import compare_versions, list_models, promotable_versions
from apps.rollouts import services
from apps.rollouts.fleet_status import pins_on, silent_instances
from apps.rollouts.forms import PromoteForm
from apps.rollouts.models import Plan
from apps.rollouts.no_control import notices_of
from apps.rollouts.overrides import Override
from apps.rollouts.plans import document_of
from apps.rollouts.selectors.blockers import obstacles_of
from apps.rollouts.selectors.estimates import times_of_model
from apps.rollouts.selectors.fleet import read_fleet
from apps.rollouts.selectors.rollouts import rollouts_of, steps_of_saved
from apps.rollouts.selectors.serving import experiment_of


@page
@require_http_methods(["GET", "HEAD", "POST"])
def promote(request: PageRequest, name: str) -> HttpResponse:
    """Choose and compare (GET); start the rollout (POST)."""
    model = get_object_or_404(list_models(), name=name)
    if request.method != "POST":
        return render(request, _template(request), _context(request, model))
    require_role(request.user, model, Role.OPERATOR)
    form = PromoteForm(model, request.POST)
    if not form.is_valid():
        context = {**_context(request, model), "form": form}
        return render(request, "models/promote.html", context, status=400)
    try:
        rollout = services.start_rollout(
            model=model,
            target=form.cleaned_data["version"],
            plan=form.cleaned_data["plan"],
            actor=actor_of(request),
            now=database_now(),
            overrides=request.POST.getlist("override"),
        )
    except InterlockError as error:
        context = {**_context(request, model), "refusal": error.message}
        return render(request, "models/promote.html", context, status=error.status)
    return redirect("rollout", pk=rollout.pk)


def _template(request: PageRequest) -> str:
    return "models/_promote.html" if request.htmx else "models/promote.html"


def _context(request: PageRequest, model: RegisteredModel) -> dict[str, Any]:
    """Return the context of the current choice, initially the newest version and default plan."""
    now = database_now()
    data = request.POST if request.method == "POST" else request.GET
    newest = promotable_versions(model).first()
    default = Plan.objects.order_by("-is_default", "name").first()
    chosen = {
        "version": data.get("version") or (newest.number if newest else ""),
        "plan": data.get("plan") or (default.name if default else ""),
    }
    form = PromoteForm(model, chosen)
    form.is_valid()
    target, plan = form.cleaned_data.get("version"), form.cleaned_data.get("plan")
    return {
        "now": now,
        "model": model,
        "form": form,
        "plan": plan,
        "steps": steps_of_saved(plan) if plan else [],
        **(_forecast(model, plan, now) if plan and model.stable else {}),
        "overrides": data.getlist("override"),
        "live": rollouts_of(model).filter(model__live_split__isnull=False).first(),
        "experiment": experiment_of(model),
        "can_operate": has_role(request.user, model, Role.OPERATOR),
        "target": target,
        **(_assessment(model, target, now) if target else {}),
    }


def _forecast(model: RegisteredModel, plan: Plan, now: datetime) -> dict[str, Any]:
    """Return the expected times of the plan at the recent traffic, and its notices."""
    document = document_of(plan)
    times = times_of_model(document, model, now)
    may_pause = not all(time.can_decide for time in times)
    return {"times": times, "may_pause": may_pause, "notices": notices_of(document)}


def _assessment(model: RegisteredModel, target: ModelVersion, now: datetime) -> dict[str, Any]:
    """Return the comparison with stable, and the obstacles of promoting `target` now."""
    obstacles = obstacles_of(model, target, now)
    return {
        "comparison": compare_versions(target, model.stable),
        "obstacles": obstacles,
        "switches": any(each.override == Override.SIGNATURE for each in obstacles),
        "blocked": hasattr(model, "live_split"),
        "deployments": list(target.deployments.all()),
        "past": rollouts_of(model).filter(target=target).first(),
        "fleet": read_fleet(now),
        "pins": pins_on(str(model.name), now),
        "silent": list(silent_instances(now)),
    }
