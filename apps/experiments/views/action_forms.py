"""Moves that need more than a button: shipping a variant, and changing the weights."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from apps.experiments.forms.actions import ShipForm, WeightsForm
from apps.experiments.forms.fields import tell
from apps.experiments.lifecycle import variants_of
from apps.experiments.models import Experiment
from apps.experiments.ship import ship_experiment, why_not_ship
from apps.experiments.states import ExperimentState
from apps.experiments.views.common import is_fresh, operated, seen_revision
from apps.experiments.weights import change_weights
from apps.lib.clock import database_now
from apps.lib.confirm import Question, ask
from apps.lib.errors import InterlockError
from apps.lib.pages import PageRequest, go_to, page
from apps.models.access import actor_of
from apps.rollouts.models import Rollout
from apps.rollouts.selectors.blockers import obstacles_of

UNDER_WAY = {ExperimentState.RUNNING, ExperimentState.PAUSED}


@page
@require_http_methods(["GET", "POST"])
def ship(request: PageRequest, name: str) -> HttpResponse:
    """Choose what becomes stable and by which plan, with what speaks against it; then start."""
    chosen = operated(request, name)
    if chosen.state not in UNDER_WAY:
        messages.error(
            request, f"{name} is {chosen.state}; only a running or paused one is shipped."
        )
        return go_to(request, "experiment", name)
    variants = variants_of(chosen)
    winner = chosen.result.get("winner")
    wanted = request.GET if request.method == "GET" else request.POST
    form = ShipForm(
        request.POST if request.method == "POST" else None,
        variants=variants,
        stable_id=chosen.model.stable_id,
        initial={"variant": wanted.get("variant") or winner},
    )
    status = 200
    if request.method == "POST":
        may_ask = form.is_valid() and is_fresh(request, chosen)
        if may_ask and (asked := ask(request, _of_ship(chosen, form))):
            return asked
        rollout, refused = _ship(request, chosen, form) if form.is_valid() else (None, None)
        if rollout is not None:
            messages.success(request, f"{name} has ended; its rollout has begun.")
            return go_to(request, "rollout", pk=rollout.pk)
        if request.htmx:
            # Asked for by one click elsewhere: the page shows what it takes.
            for told in form.errors.values():
                messages.error(request, " ".join(map(str, told)))
            return go_to(request, "experiment-ship", name)
        status = 400 if refused is None else refused.status
    context = _ship_context(chosen, variants, wanted.get("variant") or winner, database_now())
    context |= {"form": form, "overrides": request.POST.getlist("override")}
    return render(request, "experiments/ship.html", context, status=status)


def _of_ship(chosen: Experiment, form: ShipForm) -> Question:
    variant, plan = form.cleaned_data["variant"], form.cleaned_data.get("plan")
    by = f"the plan {plan.name}" if plan else "the default plan"
    text = (
        f"Ship {variant} of {chosen.name}? The experiment ends, its result is frozen, and a "
        f"rollout begins that makes the version of {variant} stable by {by}."
    )
    return Question(text, f"Ship {variant}", is_danger=False)


def _ship(
    request: PageRequest, chosen: Experiment, form: ShipForm
) -> tuple[Rollout | None, InterlockError | None]:
    """Ship, or leave on the form what was refused."""
    try:
        rollout = ship_experiment(
            experiment=chosen,
            **form.cleaned_data,
            overrides=request.POST.getlist("override"),
            actor=actor_of(request),
            now=database_now(),
            revision=seen_revision(request),
        )
    except InterlockError as error:
        tell(form, error)
        return None, error
    return rollout, None


def _ship_context(
    chosen: Experiment, variants: list[Any], wanted: str | None, now: datetime
) -> dict[str, Any]:
    result = chosen.result
    target = next((v.version for v in variants if v.name == wanted), None)
    return {
        "experiment": chosen,
        "winner": result.get("winner"),
        "verdict": result.get("verdict"),
        "doubts": [(v.name, why_not_ship(result, v.name)) for v in variants],
        "obstacles": obstacles_of(chosen.model, target, now) if target else [],
    }


@page
@require_http_methods(["GET", "POST"])
def weights(request: PageRequest, name: str) -> HttpResponse:
    chosen = operated(request, name)
    variants = variants_of(chosen)
    if chosen.state not in UNDER_WAY:
        messages.error(request, f"{name} is {chosen.state}; its weights do not change.")
        return go_to(request, "experiment", name)
    form = WeightsForm(request.POST if request.method == "POST" else None, variants=variants)
    status = 200
    if request.method == "POST":
        status = _change(request, chosen, form)
        if status == 200:
            messages.success(request, "The weights are changed from the next routing table on.")
            return redirect("experiment", name)
    context = {"experiment": chosen, "form": form, "rows": form.rows()}
    return render(request, "experiments/weights.html", context, status=status)


def _change(request: PageRequest, chosen: Experiment, form: WeightsForm) -> int:
    """Change the weights and return 200, or leave the refusal on the form and return its status."""
    if not form.is_valid():
        return 400
    try:
        change_weights(
            experiment=chosen,
            weights_bp=form.weights_bp(),
            reason=form.cleaned_data["reason"],
            actor=actor_of(request),
            now=database_now(),
            revision=seen_revision(request),
        )
    except InterlockError as error:
        tell(form, error)
        return error.status
    return 200
