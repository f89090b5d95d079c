"""Views of actions with a form: shipping a variant, and changing weights."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from apps.experiments.forms.actions import ShipForm, WeightsForm
from apps.experiments.lifecycle import variants_of
from apps.experiments.models import Experiment
from apps.experiments.ship import ship_experiment, shipping_doubts
from apps.experiments.states import ExperimentState
from apps.experiments.views.common import find_for_operator, is_fresh, posted_revision
from apps.experiments.weights import change_weights
from apps.lib.clock import database_now
from apps.lib.confirm import Question, ask
from apps.lib.errors import InterlockError
from apps.lib.forms import add_service_error
from apps.lib.pages import PageRequest, go_to, page
from apps.models.access import actor_of
from apps.rollouts.models import Rollout
from apps.rollouts.selectors.blockers import obstacles_of

LIVE = {ExperimentState.RUNNING, ExperimentState.PAUSED}


@page
@require_http_methods(["GET", "POST"])
def ship(request: PageRequest, name: str) -> HttpResponse:
    """Show the form with the doubts about each variant; a POST ships."""
    chosen = find_for_operator(request, name)
    if chosen.state not in LIVE:
        messages.error(
            request, f"{name} is {chosen.state}; only a running or paused one can be shipped."
        )
        return go_to(request, "experiment", name)
    variants = variants_of(chosen)
    winner = chosen.result.get("winner")
    query = request.GET if request.method == "GET" else request.POST
    form = ShipForm(
        request.POST if request.method == "POST" else None,
        variants=variants,
        stable_id=chosen.model.stable_id,
        initial={"variant": query.get("variant") or winner},
    )
    status = 200
    if request.method == "POST":
        may_ask = form.is_valid() and is_fresh(request, chosen)
        if may_ask and (question := ask(request, _ship_question(chosen, form))):
            return question
        rollout, error = _ship(request, chosen, form) if form.is_valid() else (None, None)
        if rollout is not None:
            messages.success(request, f"{name} has ended; its rollout has started.")
            return go_to(request, "rollout", pk=rollout.pk)
        if request.htmx:
            # One click on another page: redirect to the form, with the errors as messages.
            for errors in form.errors.values():
                messages.error(request, " ".join(map(str, errors)))
            return go_to(request, "experiment-ship", name)
        status = 400 if error is None else error.status
    context = _ship_context(chosen, variants, query.get("variant") or winner, database_now())
    context |= {"form": form, "overrides": request.POST.getlist("override")}
    return render(request, "experiments/ship.html", context, status=status)


def _ship_question(chosen: Experiment, form: ShipForm) -> Question:
    variant, plan = form.cleaned_data["variant"], form.cleaned_data.get("plan")
    by = f"the plan {plan.name}" if plan else "the default plan"
    text = (
        f"Ship {variant} of {chosen.name}? The experiment ends, its result is frozen, and a "
        f"rollout makes the version of {variant} stable by {by}."
    )
    return Question(text, f"Ship {variant}", is_danger=False)


def _ship(
    request: PageRequest, chosen: Experiment, form: ShipForm
) -> tuple[Rollout | None, InterlockError | None]:
    """Ship; on a refusal, add the error to the form and return it."""
    try:
        rollout = ship_experiment(
            experiment=chosen,
            **form.cleaned_data,
            overrides=request.POST.getlist("override"),
            actor=actor_of(request),
            now=database_now(),
            revision=posted_revision(request),
        )
    except InterlockError as error:
        add_service_error(form, error)
        return None, error
    return rollout, None


def _ship_context(
    chosen: Experiment, variants: list[Any], target_name: str | None, now: datetime
) -> dict[str, Any]:
    result = chosen.result
    target = next((v.version for v in variants if v.name == target_name), None)
    return {
        "experiment": chosen,
        "winner": result.get("winner"),
        "verdict": result.get("verdict"),
        "doubts": [(v.name, shipping_doubts(result, v.name)) for v in variants],
        "obstacles": obstacles_of(chosen.model, target, now) if target else [],
    }


@page
@require_http_methods(["GET", "POST"])
def weights(request: PageRequest, name: str) -> HttpResponse:
    chosen = find_for_operator(request, name)
    variants = variants_of(chosen)
    if chosen.state not in LIVE:
        messages.error(request, f"{name} is {chosen.state}; its weights cannot change.")
        return go_to(request, "experiment", name)
    form = WeightsForm(request.POST if request.method == "POST" else None, variants=variants)
    status = 200
    if request.method == "POST":
        status = _change(request, chosen, form)
        if status == 200:
            messages.success(request, "Weights changed; they apply from the next routing table on.")
            return redirect("experiment", name)
    context = {"experiment": chosen, "form": form, "rows": form.rows()}
    return render(request, "experiments/weights.html", context, status=status)


def _change(request: PageRequest, chosen: Experiment, form: WeightsForm) -> int:
    """Change the weights and return 200, or add the error to the form and return its status."""
    if not form.is_valid():
        return 400
    try:
        change_weights(
            experiment=chosen,
            weights_bp=form.weights_bp(),
            reason=form.cleaned_data["reason"],
            actor=actor_of(request),
            now=database_now(),
            revision=posted_revision(request),
        )
    except InterlockError as error:
        add_service_error(form, error)
        return error.status
    return 200
