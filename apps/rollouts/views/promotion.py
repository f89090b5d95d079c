"""The page that promotes a version: choose and compare, see what speaks against it, start."""

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
    """Choose and compare (GET); start the rollout (POST), or say why not."""
    found = get_object_or_404(list_models(), name=name)
    if request.method != "POST":
        return render(request, _template(request), _context(request, found))
    require_role(request.user, found, Role.OPERATOR)
    form = PromoteForm(found, request.POST)
    if not form.is_valid():
        context = {**_context(request, found), "form": form}
        return render(request, "models/promote.html", context, status=400)
    try:
        rollout = services.start_rollout(
            model=found,
            target=form.cleaned_data["version"],
            plan=form.cleaned_data["plan"],
            actor=actor_of(request),
            now=database_now(),
            overrides=request.POST.getlist("override"),
        )
    except InterlockError as error:
        context = {**_context(request, found), "refusal": error.message}
        return render(request, "models/promote.html", context, status=error.status)
    return redirect("rollout", pk=rollout.pk)


def _template(request: PageRequest) -> str:
    return "models/_promote.html" if request.htmx else "models/promote.html"


def _context(request: PageRequest, found: RegisteredModel) -> dict[str, Any]:
    """What the choice so far leads to: the newest version and the default plan to begin with."""
    now = database_now()
    wanted = request.POST if request.method == "POST" else request.GET
    newest = promotable_versions(found).first()
    default = Plan.objects.order_by("-is_default", "name").first()
    chosen = {
        "version": wanted.get("version") or (newest.number if newest else ""),
        "plan": wanted.get("plan") or (default.name if default else ""),
    }
    form = PromoteForm(found, chosen)
    form.is_valid()
    target, plan = form.cleaned_data.get("version"), form.cleaned_data.get("plan")
    return {
        "now": now,
        "model": found,
        "form": form,
        "plan": plan,
        "steps": steps_of_saved(plan) if plan else [],
        **(_foreseen(found, plan, now) if plan and found.stable else {}),
        "overrides": wanted.getlist("override"),
        "live": rollouts_of(found).filter(model__live_split__isnull=False).first(),
        "experiment": experiment_of(found),
        "can_operate": has_role(request.user, found, Role.OPERATOR),
        "target": target,
        **(_about(found, target, now) if target else {}),
    }


def _foreseen(found: RegisteredModel, plan: Plan, now: datetime) -> dict[str, Any]:
    """What the plan says of itself at the model's traffic of late."""
    document = document_of(plan)
    times = times_of_model(document, found, now)
    may_pause = not all(time.can_decide for time in times)
    return {"times": times, "may_pause": may_pause, "notices": notices_of(document)}


def _about(found: RegisteredModel, target: ModelVersion, now: datetime) -> dict[str, Any]:
    """What speaks for and against promoting `target` now."""
    obstacles = obstacles_of(found, target, now)
    return {
        "comparison": compare_versions(target, found.stable),
        "obstacles": obstacles,
        "switches": any(each.override == Override.SIGNATURE for each in obstacles),
        "blocked": hasattr(found, "live_split"),
        "deployments": list(target.deployments.all()),
        "past": rollouts_of(found).filter(target=target).first(),
        "fleet": read_fleet(now),
        "pins": pins_on(str(found.name), now),
        "silent": list(silent_instances(now)),
    }
