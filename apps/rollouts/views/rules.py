"""The page of rollout rules: freeze windows, the limit, quarantine."""

from __future__ import annotations

from typing import cast
from zoneinfo import available_timezones

from django.contrib import messages
from django.contrib.auth.models import User
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST, require_safe

from apps.lib.clock import database_now
from apps.lib.confirm import Question, ask
from apps.lib.errors import InterlockError, Invalid
from apps.lib.forms import add_service_error
from apps.lib.pages import PageRequest, attempt, go_to, page
from apps.models.access import actor_of, has_role, require_role
from apps.models.models import ModelVersion, Role
from apps.rollouts.freeze_store import create_freeze, end_freeze, role_to_freeze
from apps.rollouts.freezes import open_until
from apps.rollouts.maintenance import concurrent_max, lift_quarantine, set_concurrent_max
from apps.rollouts.models import FreezeWindow
from apps.rollouts.rule_forms import FreezeForm, LimitForm
from apps.rollouts.selectors.rules import allowed, count_places, quarantined, read_freezes

QUARANTINE_PAGE = 25
REASON_MAX = 1_000


@page
@require_safe
def rules(request: PageRequest) -> HttpResponse:
    return _render(request)


def _render(
    request: PageRequest,
    *,
    freeze: FreezeForm | None = None,
    limit: LimitForm | None = None,
    lift_refused: tuple[int, str] | None = None,
    status: int = 200,
) -> HttpResponse:
    now, user = database_now(), cast(User, request.user)
    operates, is_admin = allowed(user, Role.OPERATOR), has_role(user, None, Role.ADMIN)
    freeze = freeze or FreezeForm()
    freeze.set_model_choices(is_admin, operates)
    current_limit = concurrent_max()
    shown = Paginator(quarantined(), QUARANTINE_PAGE).get_page(request.GET.get("page"))
    context = {
        "now": now,
        "freezes": read_freezes(user, now),
        "freeze_form": freeze,
        "time_zones": sorted(available_timezones()),
        "can_freeze": is_admin or operates.models.exists(),
        "limit": current_limit,
        "limit_form": limit or LimitForm(initial={"concurrent_max": current_limit}),
        "places": count_places(),
        "can_limit": is_admin,
        "quarantined": shown,
        "rows": [
            (
                held,
                operates.on(held.version.model_id),
                lift_refused[1] if lift_refused and lift_refused[0] == held.version_id else "",
            )
            for held in shown
        ],
    }
    return render(request, "rollouts/rules.html", context, status=status)


@page
@require_POST
def freeze_new(request: PageRequest) -> HttpResponse:
    form = FreezeForm(request.POST)
    if form.is_valid():
        data, now = form.cleaned_data, database_now()
        require_role(request.user, data["model"], role_to_freeze(data["model"]))
        data["starts_at"] = data["starts_at"] or now
        try:
            window = create_freeze(**data, actor=actor_of(request), now=now)
        except InterlockError as error:
            add_service_error(form, error)
        else:
            messages.success(request, f"{_scope(window)}: the freeze window is set.")
            return redirect("rules")
    return _render(request, freeze=form, status=400)


def _scope(window: FreezeWindow) -> str:
    return window.model.name if window.model else "All models"


def _of_ending(window: FreezeWindow) -> Question:
    is_open = open_until(window, database_now()) is not None
    models = window.model.name if window.model else "all models"
    if not is_open:
        text = f"Delete the freeze window of {models} ({window.reason})? It will not open."
    elif window.is_weekly:
        text = f"Delete this weekly freeze window ({window.reason})? It ends now and does not "
        text += f"recur. Rollouts of {models} continue at once."
    else:
        text = (
            f"End this freeze window ({window.reason}) now? Rollouts of {models} continue at once."
        )
    return Question(text, "End now" if is_open and not window.is_weekly else "Delete")


@page
@require_POST
def freeze_end(request: PageRequest, pk: int) -> HttpResponse:
    """End an open window now; delete a weekly window or one that is not open."""
    window = get_object_or_404(FreezeWindow.objects.select_related("model"), pk=pk)
    require_role(request.user, window.model, role_to_freeze(window.model))

    if confirmation := ask(request, _of_ending(window)):
        return confirmation

    def end() -> str:
        end_freeze(window=window, actor=actor_of(request), now=database_now())
        return f"{_scope(window)}: the freeze window ({window.reason}) is ended."

    attempt(request, end)
    return go_to(request, "rules")


@page
@require_POST
def limit(request: PageRequest) -> HttpResponse:
    require_role(request.user, None, Role.ADMIN)
    form = LimitForm(request.POST)
    if not form.is_valid():
        return _render(request, limit=form, status=400)
    value = form.cleaned_data["concurrent_max"]
    set_concurrent_max(limit=value, actor=actor_of(request))
    subject = "Any number of rollouts" if value is None else f"At most {value} rollouts"
    messages.success(request, f"{subject} may be under way at once.")
    return redirect("rules")


@page
@require_POST
def quarantine_lift(request: PageRequest, name: str, number: int) -> HttpResponse:
    versions = ModelVersion.objects.select_related("model")
    version = get_object_or_404(versions, model__name=name, number=number)
    require_role(request.user, version.model, Role.OPERATOR)
    reason = request.POST.get("reason", "").strip()[:REASON_MAX]
    try:
        lift_quarantine(version=version, reason=reason, actor=actor_of(request))
    except Invalid as error:
        refusal = error.message.removeprefix("reason: ").capitalize()
        return _render(request, lift_refused=(version.pk, refusal), status=400)
    except InterlockError as error:
        messages.error(request, error.message)
    else:
        messages.success(
            request, f"The quarantine of {version} is lifted. It needs no override any more."
        )
    return redirect("rules")
