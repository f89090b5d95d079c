"""Pages of rollouts: the list, and one rollout as it happens."""

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


def load_rollout(pk: UUID) -> Rollout:
    related = ("model__stable__model", "target__model", "baseline__model", "plan", "release")
    rows = Rollout.objects.select_related(*related, "retry_of")
    return get_object_or_404(rows, pk=pk)


@page
@require_safe
def rollout(request: PageRequest, pk: UUID) -> HttpResponse:
    found = load_rollout(pk)
    context = {
        **state_context(request, found),
        **_chart_context(found),
        "ends": ends_of(found, database_now()),
        "stamp": stamp_of(*selectors.state_stamp(found, database_now())),
    }
    return render(request, "rollouts/rollout.html", context)


@page
@require_safe
def rollout_live(request: PageRequest, pk: UUID) -> HttpResponse:
    """The fragment with the rollout's state; 204 when the browser shows it already."""
    found = load_rollout(pk)
    return render_live(
        request,
        template="rollouts/_rollout.html",
        fragment="rollouts/_rollout.html",
        stamp=stamp_of(*selectors.state_stamp(found, database_now())),
        context=lambda: state_context(request, found),
    )


def state_context(request: PageRequest, found: Rollout) -> dict[str, Any]:
    now = database_now()
    can_operate = has_role(request.user, found.model, Role.OPERATOR)
    steps = selectors.steps_of(found)
    return {
        "now": now,
        "rollout": found,
        "steps": steps,
        "clock": selectors.clock_of(found, now),
        "gate": selectors.gate_of(found, cast(User, request.user)),
        "members": selectors.members_of(found),
        "holdback_bp": found.plan_document.get("holdback_bp", 0),
        "checks": checks_of(found),
        "events": selectors.timeline(found),
        "story": describe_history(found),
        "log": selectors.decision_log(found, request.GET.get("page")),
        "can_operate": can_operate,
        "freeze": holding_freeze(found, now),
        **_allowed(found, len(steps)),
        **(_retry_context(found, now) if can_operate else {}),
    }


def _allowed(found: Rollout, steps: int) -> dict[str, Any]:
    """Say what may be done to it in its phase, whoever looks at it."""
    phase = Phase(found.phase)
    goes_on = phase in {Phase.BAKING, Phase.PAUSED}
    return {
        "can_pause": phase is Phase.BAKING,
        "can_resume": phase is Phase.PAUSED,
        "can_skip": goes_on and found.step_index + 1 < steps,
        "can_promote": goes_on,
        "can_abort": can_abort(found),
        "abort_label": abort_label(found),
    }


def _retry_context(found: Rollout, now: datetime) -> dict[str, Any]:
    """Say whether it may be tried again now, and what that would have to override."""
    ended = found.phase in {Phase.ROLLED_BACK, Phase.FAILED}
    is_stable = found.model.stable_id == found.target_id
    busy = LiveSplit.objects.filter(model=found.model).exists() if ended else False
    can_retry = ended and not is_stable and not busy and found.kind != Rollout.Kind.ROLLBACK
    obstacles: list[Obstacle] = obstacles_of(found.model, found.target, now) if can_retry else []
    return {"can_retry": can_retry, "obstacles": obstacles}


@page
@require_safe
def rollout_charts(request: PageRequest, pk: UUID) -> HttpResponse:
    found = load_rollout(pk)
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
    arms = tuple(charts.ARM_COLOURS)
    points = series(
        found.model.name,
        since=since,
        until=until,
        by="variant",
        variants=arms,
        split=str(found.pk),
    )
    checks = (ERROR_RATE, LATENCY, UNANSWERED)
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
