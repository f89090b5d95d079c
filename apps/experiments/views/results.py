"""Views of an experiment's page, its live fragment, and its result as a file."""

from __future__ import annotations

from typing import Any

from django.http import HttpResponse, JsonResponse
from django.views.decorators.http import require_safe

from apps.experiments.exports import to_csv
from apps.experiments.models import Experiment
from apps.experiments.selectors import experiments as selectors
from apps.experiments.selectors.results import experiment_context
from apps.lib.clock import database_now
from apps.lib.pages import PageRequest, page, render_live
from apps.models.access import has_role
from apps.models.models import Role

PAGE = "experiments/experiment.html"
FRAGMENT = "experiments/parts/live.html"


@page
@require_safe
def experiment(request: PageRequest, name: str) -> HttpResponse:
    """Show the page, or its live fragment; 204 when nothing changed."""
    shown = selectors.find_experiment(name)
    may_operate = has_role(request.user, shown.model, Role.OPERATOR)
    metric = request.GET.get("metric")
    return render_live(
        request,
        template=PAGE,
        fragment=FRAGMENT,
        stamp=selectors.experiment_stamp(shown, may_operate),
        context=lambda: page_context(shown, metric, may_operate),
    )


def page_context(shown: Experiment, metric: str | None, may_operate: bool) -> dict[str, Any]:
    context = experiment_context(shown, metric)
    return {**context, "may_operate": may_operate, "now": database_now()}


@page
@require_safe
def results_csv(request: PageRequest, name: str) -> HttpResponse:
    return csv_of(selectors.find_experiment(name).result, name)


@page
@require_safe
def results_json(request: PageRequest, name: str) -> HttpResponse:
    return json_of(selectors.find_experiment(name).result, name)


def csv_of(result: dict[str, Any], name: str) -> HttpResponse:
    response = HttpResponse(to_csv(result), content_type="text/csv; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="{name}.csv"'
    return response


def json_of(result: dict[str, Any], name: str) -> HttpResponse:
    response = JsonResponse(result, json_dumps_params={"indent": 2, "ensure_ascii": False})
    response["Content-Disposition"] = f'attachment; filename="{name}.json"'
    return response
