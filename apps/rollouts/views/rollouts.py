"""Pages of rollouts: the list, one rollout as it happens, and what a person may do to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST, require_safe

from apps.lib.clock import database_now
from apps.lib.errors import Invalid
from apps.lib.pages import PageRequest, attempt, page, render_live, stamp_of
from apps.models.access import actor_of, has_role, require_role
from apps.models.models import Role
from apps.rollouts import charts, services
from apps.rollouts.check_kinds import ERROR_RATE, LATENCY
from apps.rollouts.forms import ActionForm, RolloutFilterForm
from apps.rollouts.models import Rollout
from apps.rollouts.selectors import rollouts as selectors
from apps.rollouts.selectors.telemetry import minute_stamp, series
from apps.rollouts.states import Phase
from contract.routing import CANARY, STABLE

LIST_PAGE = 25


@page
@require_safe
def rollout_list(request: PageRequest) -> HttpResponse:
    form = RolloutFilterForm(request.GET)
    found = selectors.find_rollouts()
    if form.is_valid():
        found = found.filter(**{key: value for key, value in form.cleaned_data.items() if value})
    shown = Paginator(found, LIST_PAGE).get_page(request.GET.get("page"))
    filters = request.GET.copy()
    filters.pop("page", None)
    context = {
        "form": form,
        "rollouts": shown,
        "is_filtered": any(filters.values()),
        "filter_query": f"{filters.urlencode()}&" if filters else "",
    }
    return render(request, "rollouts/rollout_list.html", context)


def _load(pk: UUID) -> Rollout:
    rows = Rollout.objects.select_related("model", "target__model", "baseline", "plan")
    return get_object_or_404(rows, pk=pk)


@page
@require_safe
def rollout(request: PageRequest, pk: UUID) -> HttpResponse:
    found = _load(pk)
    context = {
        **_state_context(request, found),
        **_chart_context(found),
        "stamp": stamp_of(*selectors.state_stamp(found, database_now())),
    }
    return render(request, "rollouts/rollout.html", context)


@page
@require_safe
def rollout_live(request: PageRequest, pk: UUID) -> HttpResponse:
    """The fragment with the rollout's state; 204 when the browser shows it already."""
    found = _load(pk)
    return render_live(
        request,
        template="rollouts/_rollout.html",
        fragment="rollouts/_rollout.html",
        stamp=stamp_of(*selectors.state_stamp(found, database_now())),
        context=lambda: _state_context(request, found),
    )


def _state_context(request: PageRequest, found: Rollout) -> dict[str, Any]:
    now = database_now()
    phase = Phase(found.phase)
    return {
        "now": now,
        "rollout": found,
        "steps": selectors.steps_of(found),
        "clock": selectors.clock_of(found, now),
        "evaluations": selectors.latest_evaluations(found),
        "events": selectors.timeline(found),
        "log": selectors.decision_log(found, request.GET.get("page")),
        "can_operate": has_role(request.user, found.model, Role.OPERATOR),
        "can_pause": phase is Phase.BAKING,
        "can_resume": phase is Phase.PAUSED,
        "can_promote": phase in {Phase.BAKING, Phase.PAUSED},
        "can_abort": found.is_live and phase is not Phase.ROLLING_BACK,
    }


@page
@require_safe
def rollout_charts(request: PageRequest, pk: UUID) -> HttpResponse:
    found = _load(pk)
    traffic = minute_stamp(database_now(), found.model.name)
    return render_live(
        request,
        template="rollouts/_charts.html",
        fragment="rollouts/_charts.html",
        stamp=stamp_of(found.phase, found.next_check_at, *traffic),
        context=lambda: _chart_context(found),
    )


def _chart_context(found: Rollout) -> dict[str, Any]:
    since, until = selectors.chart_span(found, database_now())
    arms = (STABLE, CANARY)
    points = series(
        found.model.name,
        since=since,
        until=until,
        by="variant",
        variants=arms,
        split=str(found.pk),
    )
    checks = (ERROR_RATE, LATENCY)
    answers = selectors.charted_evaluations(found, since, until, checks)
    events = [event for event in selectors.timeline(found) if event.at <= until]
    return {
        "rollout": found,
        "has_traffic": bool(points),
        "errors_figure": charts.draw_error_rate(points, charts.ARM_COLOURS),
        "latency_figure": charts.draw_latency(points, charts.ARM_COLOURS),
        "evidence_figure": charts.draw_evidence(answers),
        "share_figure": charts.draw_share(points, events, until),
    }


Action = Callable[..., Rollout]


def _act(request: PageRequest, pk: UUID, action: Action, done: str) -> HttpResponse:
    """Do `action` with the revision that the person saw; then show how the rollout stands."""
    found = _load(pk)
    require_role(request.user, found.model, Role.OPERATOR)

    def act() -> str:
        form = ActionForm(request.POST)
        if not form.is_valid():
            raise Invalid("The page did not say which state of the rollout it showed; reload it.")
        data = form.cleaned_data
        action(rollout=found, actor=actor_of(request), now=database_now(), **data)
        return done

    error = attempt(request, act)
    if not request.htmx:
        return redirect("rollout", pk=pk)
    now_found = _load(pk)
    context = {
        **_state_context(request, now_found),
        "stamp": stamp_of(*selectors.state_stamp(now_found, database_now())),
    }
    status = error.status if error else 200
    return render(request, "rollouts/_rollout.html", context, status=status)


@page
@require_POST
def pause(request: PageRequest, pk: UUID) -> HttpResponse:
    done = "Paused: the share stays, the clock stands, and the checks may still roll back."
    return _act(request, pk, services.pause_rollout, done)


@page
@require_POST
def resume(request: PageRequest, pk: UUID) -> HttpResponse:
    return _act(request, pk, services.resume_rollout, "Resumed: the step bakes anew.")


@page
@require_POST
def abort(request: PageRequest, pk: UUID) -> HttpResponse:
    done = "Aborted: all traffic goes back to stable."
    return _act(request, pk, services.abort_rollout, done)


@page
@require_POST
def promote(request: PageRequest, pk: UUID) -> HttpResponse:
    return _act(request, pk, services.promote_now, "Promoted: the target is stable now.")
