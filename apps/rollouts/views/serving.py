"""Pages about what serves: the overview, a model, and going back at once."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.http import require_POST, require_safe

from apps.lib.clock import database_now
from apps.lib.confirm import Question, ask
from apps.lib.errors import NotFound
from apps.lib.pages import PageRequest, attempt, go_to, page, render_live, stamp_of
from apps.models.access import actor_of, has_role, require_role
from apps.models.forms import CHART_SPANS, ChartSpanForm
from apps.models.models import ModelVersion, RegisteredModel, Role
from apps.models.selectors import list_models, list_refused, list_versions, shares_of
from apps.models.states import RegistryState
from apps.rollouts import charts, services
from apps.rollouts.selectors import serving
from apps.rollouts.selectors.fleet import read_fleet
from apps.rollouts.selectors.rollouts import rollouts_of
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
            **({} if request.htmx else _still_context(request, found, now)),
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
    shows_archived = request.GET.get("archived") == "1"
    return {
        "shows_archived": shows_archived,
        "archived_count": found.versions.filter(state=RegistryState.ARCHIVED).count(),
        "model": found,
        "shares": shares,
        "versions": [
            (version, traffic.get(str(version.number)), _share_of(shares, version.number))
            for version in list_versions(found, archived=shows_archived)
        ],
        "rollout": next((rollout for rollout in history if rollout.is_live), None),
        "history": history,
        "refused": list_refused(found.name),
        "shadows": recent_shadows(found.name, now),
        "has_cache_hits": any(each.cache_hits for each in traffic.values()),
        "can_operate": has_role(request.user, found, Role.OPERATOR),
        "can_configure": has_role(request.user, found, Role.ADMIN),
    }


def _still_context(request: PageRequest, found: RegisteredModel, now: datetime) -> dict[str, Any]:
    """What stands outside the fragment that is polled: charts, and the form that goes back."""
    may_go_back = has_role(request.user, found, Role.OPERATOR) and not hasattr(found, "live_split")
    ways_back = serving.ways_back(found) if may_go_back and found.stable else []
    return {
        **_chart_context(request, found, now),
        "ways_back": ways_back,
        "any_quarantined": any(way.quarantine for way in ways_back),
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
@require_POST
def rollback(request: PageRequest, name: str) -> HttpResponse:
    """Go back to the version before at once, or to the earlier one that is named."""
    models = RegisteredModel.objects.select_related("stable", "previous_stable")
    found = get_object_or_404(models, name=name)
    require_role(request.user, found, Role.OPERATOR)

    named = _named_version(found, request.POST.get("version", ""))
    target = named or found.previous_stable
    if found.stable and target:
        text = (
            f"Roll back {name} from version {found.stable.number} to version {target.number}? All "
            f"traffic moves at once, without steps and checks, and version {found.stable.number} "
            "goes into quarantine."
        )
        if asked := ask(request, Question(text, f"Roll back to {target.number}")):
            return asked

    def go() -> str:
        rollout = services.rollback_model(
            model=found,
            actor=actor_of(request),
            now=database_now(),
            reason=request.POST.get("reason", "")[:500],
            to=named,
            overrides=request.POST.getlist("override"),
        )
        return f"{found.name} goes back to version {rollout.target.number}."

    attempt(request, go)
    return go_to(request, "model", name)


def _named_version(found: RegisteredModel, number: str) -> ModelVersion | None:
    """Return the version of that number; None for no number. Raises NotFound."""
    if not number:
        return None
    version = found.versions.filter(number=int(number[:9])).first() if number.isdecimal() else None
    if version is None:
        raise NotFound(f"{found.name} has no version {number!r}.")
    return version
