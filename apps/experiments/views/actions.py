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
from apps.experiments.states import ExperimentState
from apps.experiments.views.common import is_fresh, operated, seen_revision
from apps.experiments.views.results import FRAGMENT, page_context
from apps.lib.clock import database_now
from apps.lib.confirm import Question, ask
from apps.lib.errors import InterlockError, Invalid
from apps.lib.pages import PageRequest, attempt, go_to, page
from apps.models.access import actor_of

REASON_MAX = 1_000


def _act(
    request: PageRequest,
    name: str,
    service: Callable[..., Any],
    done: str,
    question: Callable[[Experiment], Question] | None = None,
) -> HttpResponse:
    """Do it and show the page anew; a refusal shows the present state and the reason.

    With a `question` it is asked first, unless the page is stale: then the service refuses.
    """
    chosen = operated(request, name)
    reason = read_reason(request)
    may_ask = question is not None and is_fresh(request, chosen)
    if question and may_ask and (asked := ask(request, question(chosen))):
        return asked

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


REASON = "Reason, kept in its history"


def _of_start(experiment: Experiment) -> Question:
    meant = " that are meant" if experiment.tenants or experiment.headers else ""
    text = (
        f"Start {experiment.name}? {experiment.coverage_bp / 100:g} % of {experiment.model.name}'s "
        f"units{meant} are split over {experiment.variants.count()} variants as soon as their "
        "versions are ready. Only weights can be changed from then on."
    )
    return Question(text, "Start", is_danger=False)


def _of_pause(experiment: Experiment) -> Question:
    text = (
        f"Pause {experiment.name}? Everybody gets {experiment.model.name}'s stable version until "
        "it is resumed; then every unit gets the variant that it had."
    )
    return Question(text, "Pause", REASON)


def _of_stop(experiment: Experiment) -> Question:
    text = (
        f"Stop {experiment.name}? No further unit is assigned, all get {experiment.model.name}'s "
        "stable version, and the final result is made and frozen."
    )
    return Question(text, "Stop and freeze the result", REASON)


def _of_abandon(experiment: Experiment) -> Question:
    text = (
        f"Abandon {experiment.name}? It ends, all get {experiment.model.name}'s stable version, "
        "and no verdict is claimed, whatever its numbers say."
    )
    return Question(text, "Abandon", REASON)


@page
@require_POST
def start(request: PageRequest, name: str) -> HttpResponse:
    done = f"{name} is being prepared: it runs as soon as its versions are ready."
    return _act(request, name, services.start_experiment, done, _of_start)


@page
@require_POST
def pause(request: PageRequest, name: str) -> HttpResponse:
    done = f"{name} is paused: everybody gets stable, and every unit keeps its variant."
    return _act(request, name, services.pause_experiment, done, _of_pause)


@page
@require_POST
def resume(request: PageRequest, name: str) -> HttpResponse:
    done = f"{name} runs again: every unit gets the variant that it had."
    return _act(request, name, services.resume_experiment, done)


@page
@require_POST
def stop(request: PageRequest, name: str) -> HttpResponse:
    done = f"{name} is stopped; its final result is made within seconds and frozen."
    return _act(request, name, services.stop_experiment, done, _of_stop)


@page
@require_POST
def abandon(request: PageRequest, name: str) -> HttpResponse:
    done = f"{name} is abandoned: its numbers are frozen, and none of them is claimed."
    return _act(request, name, services.abandon_experiment, done, _of_abandon)


@page
@require_POST
def refresh(request: PageRequest, name: str) -> HttpResponse:
    done = "It is analysed again at the next tick, within seconds."
    return _act(request, name, services.request_refresh, done)


@page
@require_POST
def delete(request: PageRequest, name: str) -> HttpResponse:
    chosen = operated(request, name)
    may_ask = is_fresh(request, chosen) and chosen.state == ExperimentState.DRAFT
    text = f"Delete the draft {name}? It cannot be brought back."
    if may_ask and (asked := ask(request, Question(text, "Delete the draft"))):
        return asked
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
