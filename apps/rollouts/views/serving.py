"""Pages of the overview and of a model, and the instant rollback."""

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
    model = get_object_or_404(list_models(), name=name)
    now = database_now()

    def context() -> dict[str, Any]:
        return {
            "now": now,
            **_model_context(request, model, now),
            **({} if request.htmx else _static_context(request, model, now)),
        }

    return render_live(
        request,
        template="models/model.html",
        fragment="models/_model.html",
        stamp=stamp_of(
            *serving.model_stamp(model),
            *minute_stamp(now, model.name),
            *shadows_stamp(model.name, now),
        ),
        context=context,
    )


def _model_context(request: PageRequest, model: RegisteredModel, now: datetime) -> dict[str, Any]:
    history = list(rollouts_of(model)[:HISTORY_MAX])
    traffic = last_minute(now, model.name).get(model.name, {})
    shares = shares_of(model)
    shows_archived = request.GET.get("archived") == "1"
    return {
        "shows_archived": shows_archived,
        "archived_count": model.versions.filter(state=RegistryState.ARCHIVED).count(),
        "model": model,
        "shares": shares,
        "versions": [
            (version, traffic.get(str(version.number)), _share_of(shares, version.number))
            for version in list_versions(model, archived=shows_archived)
        ],
        "rollout": next((rollout for rollout in history if rollout.is_live), None),
        "history": history,
        "refused": list_refused(model.name),
        "shadows": recent_shadows(model.name, now),
        "has_cache_hits": any(each.cache_hits for each in traffic.values()),
        "can_operate": has_role(request.user, model, Role.OPERATOR),
        "can_configure": has_role(request.user, model, Role.ADMIN),
    }


def _static_context(request: PageRequest, model: RegisteredModel, now: datetime) -> dict[str, Any]:
    """Return the context outside of the polled fragment: charts and the rollback form."""
    may_roll_back = has_role(request.user, model, Role.OPERATOR) and not hasattr(
        model, "live_split"
    )
    targets = serving.rollback_targets(model) if may_roll_back and model.stable else []
    return {
        **_chart_context(request, model, now),
        "rollback_targets": targets,
        "any_quarantined": any(target.quarantine for target in targets),
    }


def _share_of(shares: list[Any], number: int) -> int:
    return sum(share.weight_bp for share in shares if share.version == str(number))


@page
@require_safe
def model_charts(request: PageRequest, name: str) -> HttpResponse:
    model = get_object_or_404(list_models(), name=name)
    now = database_now()
    return render_live(
        request,
        template="models/_model_charts.html",
        fragment="models/_model_charts.html",
        stamp=stamp_of(request.GET.get("span"), *minute_stamp(now, model.name)),
        context=lambda: {"model": model, **_chart_context(request, model, now)},
    )


def _chart_context(request: PageRequest, model: RegisteredModel, now: datetime) -> dict[str, Any]:
    form = ChartSpanForm(request.GET)
    span = form.cleaned_data["span"] if form.is_valid() else next(iter(CHART_SPANS))
    since = now - timedelta(minutes=int(span))
    points = series(model.name, since=since, until=now, by="version_number")
    shares = shares_of(model)
    canary = next((share.version for share in shares if share.variant == "canary"), None)
    stable = str(model.stable.number) if model.stable else None
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
    """Roll back at once to the previous version, or to the given earlier one."""
    models = RegisteredModel.objects.select_related("stable", "previous_stable")
    model = get_object_or_404(models, name=name)
    require_role(request.user, model, Role.OPERATOR)

    named = _named_version(model, request.POST.get("version", ""))
    target = named or model.previous_stable
    if model.stable and target:
        text = (
            f"Roll back {name} from version {model.stable.number} to version {target.number}? All "
            f"traffic moves at once, without steps and checks, and version {model.stable.number} "
            "goes into quarantine."
        )
        if confirmation := ask(request, Question(text, f"Roll back to {target.number}")):
            return confirmation

    def act() -> str:
        rollout = services.rollback_model(
            model=model,
            actor=actor_of(request),
            now=database_now(),
            reason=request.POST.get("reason", "")[:500],
            to=named,
            overrides=request.POST.getlist("override"),
        )
        return f"{model.name} is being rolled back to version {rollout.target.number}."

    attempt(request, act)
    return go_to(request, "model", name)


def _named_version(model: RegisteredModel, number: str) -> ModelVersion | None:
    """Return the version with that number; None without a number. Raises NotFound."""
    if not number:
        return None
    version = model.versions.filter(number=int(number[:9])).first() if number.isdecimal() else None
    if version is None:
        raise NotFound(f"{model.name} has no version {number!r}.")
    return version
