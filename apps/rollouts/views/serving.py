"""Pages about what serves: the overview, a model, promoting a version, going back at once."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from apps.lib.clock import database_now
from apps.lib.errors import InterlockError
from apps.lib.pages import PageRequest, attempt, go_to, page, render_live, stamp_of
from apps.models.access import actor_of, has_role, require_role
from apps.models.forms import CHART_SPANS, ChartSpanForm
from apps.models.models import RegisteredModel, Role
from apps.models.selectors import (
    compare_versions,
    list_models,
    list_refused,
    list_versions,
    promotable_versions,
    shares_of,
)
from apps.rollouts import charts, services
from apps.rollouts.forms import PromoteForm
from apps.rollouts.models import Plan
from apps.rollouts.overrides import signature_difference
from apps.rollouts.selectors import serving
from apps.rollouts.selectors.fleet import read_fleet
from apps.rollouts.selectors.rollouts import rollouts_of, steps_of_saved
from apps.rollouts.selectors.shadows import recent_shadows, shadows_stamp
from apps.rollouts.selectors.telemetry import last_minute, minute_stamp, series

HISTORY_MAX = 15


@page
@require_safe
def overview(request: PageRequest) -> HttpResponse:
    now = database_now()
    fleet = read_fleet(now)

    def context() -> dict[str, Any]:
        return {
            "now": now,
            "fleet": fleet,
            "served": serving.read_serving(now),
            "decisions": serving.recent_decisions(),
            "failed": serving.failed_deployments(),
            "refused": list_refused(),
            "registry_url": settings.MLFLOW_TRACKING_URI,
            "can_sync": has_role(request.user, None, Role.OPERATOR),
        }

    return render_live(
        request,
        template="models/overview.html",
        fragment="models/_overview.html",
        stamp=stamp_of(*serving.overview_stamp(now, fleet)),
        context=context,
    )


@page
@require_safe
def model(request: PageRequest, name: str) -> HttpResponse:
    found = get_object_or_404(list_models(), name=name)
    now = database_now()

    def context() -> dict[str, Any]:
        return {
            "now": now,
            **_model_context(request, found, now),
            **({} if request.htmx else _chart_context(request, found, now)),
        }

    return render_live(
        request,
        template="models/model.html",
        fragment="models/_model.html",
        stamp=stamp_of(
            *serving.model_stamp(found),
            *minute_stamp(now, found.name),
            *shadows_stamp(found.name, now),
        ),
        context=context,
    )


def _model_context(request: PageRequest, found: RegisteredModel, now: datetime) -> dict[str, Any]:
    history = list(rollouts_of(found)[:HISTORY_MAX])
    traffic = last_minute(now, found.name).get(found.name, {})
    shares = shares_of(found)
    return {
        "model": found,
        "shares": shares,
        "versions": [
            (version, traffic.get(str(version.number)), _share_of(shares, version.number))
            for version in list_versions(found)
        ],
        "rollout": next((rollout for rollout in history if rollout.is_live), None),
        "history": history,
        "refused": list_refused(found.name),
        "shadows": recent_shadows(found.name, now),
        "has_cache_hits": any(each.cache_hits for each in traffic.values()),
        "can_operate": has_role(request.user, found, Role.OPERATOR),
        "can_configure": has_role(request.user, found, Role.ADMIN),
    }


def _share_of(shares: list[Any], number: int) -> int:
    return sum(share.weight_bp for share in shares if share.version == str(number))


@page
@require_safe
def model_charts(request: PageRequest, name: str) -> HttpResponse:
    found = get_object_or_404(list_models(), name=name)
    now = database_now()
    return render_live(
        request,
        template="models/_model_charts.html",
        fragment="models/_model_charts.html",
        stamp=stamp_of(request.GET.get("span"), *minute_stamp(now, found.name)),
        context=lambda: {"model": found, **_chart_context(request, found, now)},
    )


def _chart_context(request: PageRequest, found: RegisteredModel, now: datetime) -> dict[str, Any]:
    form = ChartSpanForm(request.GET)
    span = form.cleaned_data["span"] if form.is_valid() else next(iter(CHART_SPANS))
    since = now - timedelta(minutes=int(span))
    points = series(found.name, since=since, until=now, by="version_number")
    shares = shares_of(found)
    canary = next((share.version for share in shares if share.variant == "canary"), None)
    stable = str(found.stable.number) if found.stable else None
    colours = charts.colours_of({point.arm for point in points}, stable, canary)
    return {
        "span": span,
        "spans": CHART_SPANS.items(),
        "has_traffic": bool(points),
        "requests_figure": charts.draw_requests(points, colours, "version "),
        "latency_figure": charts.draw_latency(points, colours, "version "),
        "errors_figure": charts.draw_error_rate(points, colours, "version "),
    }


@page
@require_http_methods(["GET", "HEAD", "POST"])
def promote(request: PageRequest, name: str) -> HttpResponse:
    """Choose and compare (GET); start the rollout (POST), or say why not."""
    found = get_object_or_404(list_models(), name=name)
    if request.method != "POST":
        return render(request, _promote_template(request), _promote_context(request, found))
    require_role(request.user, found, Role.OPERATOR)
    form = PromoteForm(found, request.POST)
    if not form.is_valid():
        context = {**_promote_context(request, found), "form": form}
        return render(request, "models/promote.html", context, status=400)
    try:
        rollout = services.start_rollout(
            model=found,
            target=form.cleaned_data["version"],
            plan=form.cleaned_data["plan"],
            actor=actor_of(request),
            now=database_now(),
        )
    except InterlockError as error:
        context = {**_promote_context(request, found), "refusal": error.message}
        return render(request, "models/promote.html", context, status=error.status)
    return redirect("rollout", pk=rollout.pk)


def _promote_template(request: PageRequest) -> str:
    return "models/_promote.html" if request.htmx else "models/promote.html"


def _promote_context(request: PageRequest, found: RegisteredModel) -> dict[str, Any]:
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
    stable = found.stable
    difference = signature_difference(stable, target) if target and stable else []
    past = rollouts_of(found).filter(target=target).first() if target else None
    return {
        "now": now,
        "model": found,
        "form": form,
        "target": target,
        "plan": plan,
        "steps": steps_of_saved(plan) if plan else [],
        "comparison": compare_versions(target, found.stable) if target else None,
        "difference": difference,
        "blocked": bool(difference) or hasattr(found, "live_split"),
        "deployments": list(target.deployments.all()) if target else [],
        "past": past,
        "live": rollouts_of(found).filter(model__live_split__isnull=False).first(),
        "fleet": read_fleet(now),
        "can_operate": has_role(request.user, found, Role.OPERATOR),
    }


@page
@require_POST
def rollback(request: PageRequest, name: str) -> HttpResponse:
    found = get_object_or_404(RegisteredModel.objects.select_related("stable"), name=name)
    require_role(request.user, found, Role.OPERATOR)

    def go() -> str:
        reason = request.POST.get("reason", "")[:500]
        actor, now = actor_of(request), database_now()
        rollout = services.rollback_model(model=found, actor=actor, now=now, reason=reason)
        return f"{found.name} goes back to version {rollout.target.number}."

    attempt(request, go)
    return go_to(request, "model", name)
