"""What a person may do to an experiment. Each is a POST with the revision that the person saw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST

from apps.experiments import services
from apps.experiments.models import Experiment
from apps.experiments.selectors import experiments as selectors
from apps.experiments.views.common import operated, seen_revision
from apps.experiments.views.results import FRAGMENT, page_context
from apps.lib.clock import database_now
from apps.lib.errors import InterlockError, Invalid
from apps.lib.pages import PageRequest, attempt, go_to, page
from apps.models.access import actor_of

REASON_MAX = 1_000


def _act(request: PageRequest, name: str, service: Callable[..., Any], done: str) -> HttpResponse:
    """Do it and show the page anew; a refusal shows the present state and the reason."""
    chosen = operated(request, name)
    reason = read_reason(request)

    def act() -> str:
        service(
            experiment=chosen,
            actor=actor_of(request),
            now=database_now(),
            revision=seen_revision(request),
            **({"reason": reason} if reason else {}),
        )
        return done

    error = attempt(request, act)
    return refused(request, chosen, error) if error else go_to(request, "experiment", name)


def read_reason(request: PageRequest) -> str:
    reason = request.POST.get("reason", "").strip()
    if len(reason) > REASON_MAX:
        raise Invalid(f"reason: it has {len(reason)} characters; it takes {REASON_MAX}")
    return reason


def refused(request: PageRequest, chosen: Experiment, error: InterlockError) -> HttpResponse:
    """Show how the experiment stands now; the reason is among the messages already."""
    if not request.htmx:
        return redirect("experiment", chosen.name)
    present = selectors.find_experiment(chosen.name)
    context = {
        **page_context(present, request.GET.get("metric"), may_operate=True),
        "stamp": selectors.experiment_stamp(present, True),
    }
    return render(request, FRAGMENT, context, status=error.status)


@page
@require_POST
def start(request: PageRequest, name: str) -> HttpResponse:
    done = f"{name} is being prepared: it runs as soon as its versions are ready."
    return _act(request, name, services.start_experiment, done)


@page
@require_POST
def pause(request: PageRequest, name: str) -> HttpResponse:
    done = f"{name} is paused: everybody gets stable, and every unit keeps its variant."
    return _act(request, name, services.pause_experiment, done)


@page
@require_POST
def resume(request: PageRequest, name: str) -> HttpResponse:
    done = f"{name} runs again: every unit gets the variant that it had."
    return _act(request, name, services.resume_experiment, done)


@page
@require_POST
def stop(request: PageRequest, name: str) -> HttpResponse:
    done = f"{name} is stopped; its final result is made within seconds and frozen."
    return _act(request, name, services.stop_experiment, done)


@page
@require_POST
def abandon(request: PageRequest, name: str) -> HttpResponse:
    done = f"{name} is abandoned: its numbers are frozen, and none of them is claimed."
    return _act(request, name, services.abandon_experiment, done)


@page
@require_POST
def refresh(request: PageRequest, name: str) -> HttpResponse:
    done = "It is analysed again at the next tick, within seconds."
    return _act(request, name, services.request_refresh, done)


@page
@require_POST
def delete(request: PageRequest, name: str) -> HttpResponse:
    chosen = operated(request, name)
    try:
        services.delete_experiment(
            experiment=chosen,
            actor=actor_of(request),
            now=database_now(),
            revision=seen_revision(request),
        )
    except InterlockError as error:
        messages.error(request, error.message)
        return refused(request, chosen, error)
    messages.success(request, f"The draft {name} is deleted.")
    return go_to(request, "experiment-list")
