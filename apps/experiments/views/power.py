"""View of the sample size of a draft: numbers and a curve; a POST sets the planned units."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from apps.experiments import services
from apps.experiments.charts.planning import detectable_figure
from apps.experiments.forms.power import PowerForm
from apps.experiments.models import Experiment
from apps.experiments.power import DAY_S, plan_size
from apps.experiments.result_tables.wording import scale_of
from apps.experiments.selectors import experiments as selectors
from apps.experiments.states import ExperimentState
from apps.experiments.views.common import find_for_operator, posted_revision
from apps.lib.clock import database_now
from apps.lib.errors import Invalid
from apps.lib.pages import PageRequest, page
from apps.models.access import actor_of, has_role
from apps.models.models import Role


@page
@require_http_methods(["GET", "POST"])
def power(request: PageRequest, name: str) -> HttpResponse:
    """Show the plan for the query's parameters; a POST sets the draft's planned units."""
    if request.method == "POST":
        return _set_planned_units(request, name)
    shown = selectors.find_experiment(name)
    form = PowerForm(request.GET or None)
    status = 200 if not request.GET or form.is_valid() else 400
    plan: dict[str, Any] = {}
    try:
        plan = plan_size(shown, form.power_request(), database_now())
    except Invalid as error:
        if form.is_bound:
            form.add_error(None, error.sentence)
        status, plan = 400, {"reason": error.text}
    return render(
        request, "experiments/power.html", _context(request, shown, form, plan), None, status
    )


def _context(
    request: PageRequest, shown: Experiment, form: PowerForm, plan: dict[str, Any]
) -> dict[str, Any]:
    metric = shown.metric
    scale = scale_of(metric.kind, metric.source)
    curve = plan.get("curve", [])
    may_plan = has_role(request.user, shown.model, Role.OPERATOR)
    return {
        "experiment": shown,
        "form": form if form.is_bound else PowerForm(initial=_initial(form)),
        "plan": plan,
        "sizes": [_with_duration(size) for size in plan.get("sizes", [])],
        "guardrails": [_with_duration(row) for row in plan.get("guardrails", [])],
        "scale": scale,
        "effect": scale.change(plan.get("effect")),
        "baseline": scale.level((plan.get("baseline") or {}).get("mean")),
        "points": [_row(point, scale) for point in curve],
        "planned": _with_duration(_row(plan["planned"], scale)) if "planned" in plan else None,
        "figure": detectable_figure(curve, plan.get("effect"), scale),
        "may_plan": may_plan and shown.state == ExperimentState.DRAFT,
    }


def _initial(form: PowerForm) -> dict[str, Any]:
    return {name: field.initial for name, field in form.fields.items()}


def _row(point: dict[str, Any], scale: Any) -> dict[str, Any]:
    effects = {key: scale.amount(point[key]) for key in ("fixed", "sequential")}
    return {"days": point["days"], "units": point["units"], **effects}


def _with_duration(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"duration_s": None if row["days"] is None else row["days"] * DAY_S}


def _set_planned_units(request: PageRequest, name: str) -> HttpResponse:
    draft = find_for_operator(request, name)
    units = request.POST.get("units", "")
    if not units.isdecimal() or len(units) > 12:
        raise Invalid("The form has no valid number of planned units; reload the page.")
    services.edit_experiment(
        experiment=draft,
        actor=actor_of(request),
        now=database_now(),
        revision=posted_revision(request),
        planned_units=int(units),
    )
    messages.success(request, f"{name} now plans {int(units):,} units.")
    return redirect("experiment", name)
