"""Views of actions on an experiment. Each is a POST with the revision that the page showed."""

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
from apps.experiments.views.common import find_for_operator, is_fresh, posted_revision
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
    """Run `service` and show the page; a refusal shows the current state and the reason.

    A `question` asks for confirmation first, unless the page is stale: then the service refuses.
    """
    chosen = find_for_operator(request, name)
    reason = read_reason(request)
    may_ask = question is not None and is_fresh(request, chosen)
    if question and may_ask and (confirmation := ask(request, question(chosen))):
        return confirmation

    def act() -> str:
        service(
            experiment=chosen,
            actor=actor_of(request),
            now=database_now(),
            revision=posted_revision(request),
            **({"reason": reason} if reason else {}),
        )
        return done

    error = attempt(request, act)
    return show_current(request, chosen, error) if error else go_to(request, "experiment", name)


def read_reason(request: PageRequest) -> str:
    reason = request.POST.get("reason", "").strip()
    if len(reason) > REASON_MAX:
        raise Invalid(f"{len(reason)} characters; the limit is {REASON_MAX}", field="reason")
    return reason


def show_current(request: PageRequest, chosen: Experiment, error: InterlockError) -> HttpResponse:
    """Show the experiment's current state; the error is already among the messages."""
    if not request.htmx:
        return redirect("experiment", chosen.name)
    current = selectors.find_experiment(chosen.name)
    context = {
        **page_context(current, request.GET.get("metric"), may_operate=True),
        "stamp": selectors.experiment_stamp(current, True),
    }
    return render(request, FRAGMENT, context, status=error.status)


REASON = "Reason, stored in the history"


def _start_question(experiment: Experiment) -> Question:
    targeted = "targeted " if experiment.tenants or experiment.headers else ""
    text = (
        f"Start {experiment.name}? {experiment.coverage_bp / 100:g} % of {experiment.model.name}'s "
        f"{targeted}units are split over {experiment.variants.count()} variants as soon as their "
        "versions are ready. After the start only weights can change."
    )
    return Question(text, "Start", is_danger=False)


def _pause_question(experiment: Experiment) -> Question:
    text = (
        f"Pause {experiment.name}? All requests get {experiment.model.name}'s stable version until "
        "you resume it; then every unit gets its previous variant."
    )
    return Question(text, "Pause", REASON)


def _stop_question(experiment: Experiment) -> Question:
    text = (
        f"Stop {experiment.name}? All requests get {experiment.model.name}'s stable version. The "
        "final result is computed and frozen."
    )
    return Question(text, "Stop and freeze the result", REASON)


def _abandon_question(experiment: Experiment) -> Question:
    text = (
        f"Abandon {experiment.name}? All requests get {experiment.model.name}'s stable version. "
        "The experiment ends without a verdict."
    )
    return Question(text, "Abandon", REASON)


@page
@require_POST
def start(request: PageRequest, name: str) -> HttpResponse:
    done = f"{name} is preparing; it runs as soon as its versions are ready."
    return _act(request, name, services.start_experiment, done, _start_question)


@page
@require_POST
def pause(request: PageRequest, name: str) -> HttpResponse:
    done = f"{name} is paused: all requests get stable; every unit keeps its variant."
    return _act(request, name, services.pause_experiment, done, _pause_question)


@page
@require_POST
def resume(request: PageRequest, name: str) -> HttpResponse:
    done = f"{name} runs again; every unit gets its previous variant."
    return _act(request, name, services.resume_experiment, done)


@page
@require_POST
def stop(request: PageRequest, name: str) -> HttpResponse:
    done = f"{name} is stopped; its final result follows within seconds and is frozen."
    return _act(request, name, services.stop_experiment, done, _stop_question)


@page
@require_POST
def abandon(request: PageRequest, name: str) -> HttpResponse:
    done = f"{name} is abandoned; its numbers are frozen without a verdict."
    return _act(request, name, services.abandon_experiment, done, _abandon_question)


@page
@require_POST
def refresh(request: PageRequest, name: str) -> HttpResponse:
    done = "The next analysis starts within seconds."
    return _act(request, name, services.request_refresh, done)


@page
@require_POST
def delete(request: PageRequest, name: str) -> HttpResponse:
    chosen = find_for_operator(request, name)
    may_ask = is_fresh(request, chosen) and chosen.state == ExperimentState.DRAFT
    text = f"Delete the draft {name}? This cannot be undone."
    if may_ask and (confirmation := ask(request, Question(text, "Delete the draft"))):
        return confirmation
    try:
        services.delete_experiment(
            experiment=chosen,
            actor=actor_of(request),
            now=database_now(),
            revision=posted_revision(request),
        )
    except InterlockError as error:
        messages.error(request, error.message)
        return show_current(request, chosen, error)
    messages.success(request, f"Draft {name} deleted.")
    return go_to(request, "experiment-list")
