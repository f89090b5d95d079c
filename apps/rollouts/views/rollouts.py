"""Pages of rollouts: the list, and one live rollout with its charts."""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast
from uuid import UUID

from django.contrib.auth.models import User
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_safe

from apps.lib.clock import database_now
from apps.lib.pages import PageRequest, page, render_live, stamp_of
from apps.models.access import has_role
from apps.models.models import LiveSplit, Role
from apps.rollouts import charts
from apps.rollouts.check_kinds import ERROR_RATE, LATENCY, UNANSWERED
from apps.rollouts.forms import RolloutFilterForm
from apps.rollouts.models import Rollout
from apps.rollouts.narrative import describe_history
from apps.rollouts.overrides import holding_freeze
from apps.rollouts.selectors import rollouts as selectors
from apps.rollouts.selectors.blockers import Obstacle, obstacles_of
from apps.rollouts.selectors.checks import checks_of
from apps.rollouts.selectors.ends import ends_of
from apps.rollouts.selectors.telemetry import minute_stamp, series
from apps.rollouts.states import Phase
from apps.rollouts.views.confirmations import abort_label, can_abort

LIST_PAGE = 25


@page
@require_safe
def rollout_list(request: PageRequest) -> HttpResponse:
    form = RolloutFilterForm(request.GET)
    rows = selectors.find_rollouts()
    if form.is_valid():
        rows = rows.filter(**{key: value for key, value in form.cleaned_data.items() if value})
    shown = Paginator(rows, LIST_PAGE).get_page(request.GET.get("page"))
    filters = request.GET.copy()
    filters.pop("page", None)
    context = {
        "form": form,
        "rollouts": shown,
        "is_filtered": any(filters.values()),
        "filter_query": f"{filters.urlencode()}&" if filters else "",
    }
    return render(request, "rollouts/rollout_list.html", context)


def load_rollout(pk: UUID) -> Rollout:
    related = ("model__stable__model", "target__model", "baseline__model", "plan", "release")
    rows = Rollout.objects.select_related(*related, "retry_of")
    return get_object_or_404(rows, pk=pk)


@page
@require_safe
def rollout(request: PageRequest, pk: UUID) -> HttpResponse:
    rollout = load_rollout(pk)
    context = {
        **state_context(request, rollout),
        **_chart_context(rollout),
        "ends": ends_of(rollout, database_now()),
        "stamp": stamp_of(*selectors.state_stamp(rollout, database_now())),
    }
    return render(request, "rollouts/rollout.html", context)


@page
@require_safe
def rollout_live(request: PageRequest, pk: UUID) -> HttpResponse:
    """Render the fragment of the state; 204 when the browser shows it already."""
    rollout = load_rollout(pk)
    return render_live(
        request,
        template="rollouts/_rollout.html",
        fragment="rollouts/_rollout.html",
        stamp=stamp_of(*selectors.state_stamp(rollout, database_now())),
        context=lambda: state_context(request, rollout),
    )


def state_context(request: PageRequest, rollout: Rollout) -> dict[str, Any]:
    now = database_now()
    can_operate = has_role(request.user, rollout.model, Role.OPERATOR)
    steps = selectors.steps_of(rollout)
    return {
        "now": now,
        "rollout": rollout,
        "steps": steps,
        "clock": selectors.clock_of(rollout, now),
        "gate": selectors.gate_of(rollout, cast(User, request.user)),
        "members": selectors.members_of(rollout),
        "holdback_bp": rollout.plan_document.get("holdback_bp", 0),
        "checks": checks_of(rollout),
        "events": selectors.timeline(rollout),
        "story": describe_history(rollout),
        "log": selectors.decision_log(rollout, request.GET.get("page")),
        "can_operate": can_operate,
        "freeze": holding_freeze(rollout, now),
        **_allowed(rollout, len(steps)),
        **(_retry_context(rollout, now) if can_operate else {}),
    }


def _allowed(rollout: Rollout, steps: int) -> dict[str, Any]:
    """Return the actions that its phase allows, without the roles of the person."""
    phase = Phase(rollout.phase)
    is_on_step = phase in {Phase.BAKING, Phase.PAUSED}
    return {
        "can_pause": phase is Phase.BAKING,
        "can_resume": phase is Phase.PAUSED,
        "can_skip": is_on_step and rollout.step_index + 1 < steps,
        "can_promote": is_on_step,
        "can_abort": can_abort(rollout),
        "abort_label": abort_label(rollout),
    }


def _retry_context(rollout: Rollout, now: datetime) -> dict[str, Any]:
    """Return whether it can be retried now, and the obstacles of a retry."""
    is_unsuccessful = rollout.phase in {Phase.ROLLED_BACK, Phase.FAILED}
    is_stable = rollout.model.stable_id == rollout.target_id
    busy = LiveSplit.objects.filter(model=rollout.model).exists() if is_unsuccessful else False
    can_retry = (
        is_unsuccessful and not is_stable and not busy and rollout.kind != Rollout.Kind.ROLLBACK
    )
    obstacles: list[Obstacle] = (
        obstacles_of(rollout.model, rollout.target, now) if can_retry else []
    )
    return {"can_retry": can_retry, "obstacles": obstacles}


@page
@require_safe
def rollout_charts(request: PageRequest, pk: UUID) -> HttpResponse:
    rollout = load_rollout(pk)
    traffic = minute_stamp(database_now(), rollout.model.name)
    return render_live(
        request,
        template="rollouts/_charts.html",
        fragment="rollouts/_charts.html",
        stamp=stamp_of(rollout.phase, rollout.next_check_at, *traffic),
        context=lambda: _chart_context(rollout),
    )


def _chart_context(rollout: Rollout) -> dict[str, Any]:
    since, until = selectors.chart_span(rollout, database_now())
    arms = tuple(charts.ARM_COLOURS)
    points = series(
        rollout.model.name,
        since=since,
        until=until,
        by="variant",
        variants=arms,
        split=str(rollout.pk),
    )
    checks = (ERROR_RATE, LATENCY, UNANSWERED)
    evaluations = selectors.charted_evaluations(rollout, since, until, checks)
    events = [event for event in selectors.timeline(rollout) if event.at <= until]
    return {
        "rollout": rollout,
        "has_traffic": bool(points),
        "errors_figure": charts.draw_error_rate(points, charts.ARM_COLOURS),
        "latency_figure": charts.draw_latency(points, charts.ARM_COLOURS),
        "evidence_figure": charts.draw_evidence(evaluations),
        "share_figure": charts.draw_share(points, events, until),
    }
