"""Pages of metrics: all of them, one with who uses it and what comes in, making one."""

from __future__ import annotations

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from apps.experiments import services
from apps.experiments.forms.fields import tell
from apps.experiments.forms.metrics import MetricForm
from apps.experiments.models import Metric
from apps.experiments.selectors import metrics as selectors
from apps.experiments.selectors.refusals import REFUSALS_SHOWN_MAX, refusal_rows
from apps.lib.clock import database_now
from apps.lib.confirm import Question, ask
from apps.lib.errors import Forbidden, InterlockError
from apps.lib.pages import PageRequest, attempt, go_to, page
from apps.models.access import actor_of, has_role
from apps.models.models import Role

PAGE_SIZE = 50
DESCRIPTION_MAX = 10_000


@page
@require_safe
def metric_list(request: PageRequest) -> HttpResponse:
    rows = Paginator(selectors.metric_rows(), PAGE_SIZE).get_page(request.GET.get("page"))
    context = {
        "rows": rows,
        "refused": list(refusal_rows()[:REFUSALS_SHOWN_MAX]),
        "may_make": has_role(request.user, None, Role.OPERATOR),
    }
    return render(request, "experiments/metric_list.html", context)


@page
@require_safe
def metric(request: PageRequest, name: str) -> HttpResponse:
    found = selectors.find_metric(name)
    context = {
        **selectors.metric_context(found, database_now()),
        "may_make": has_role(request.user, None, Role.OPERATOR),
    }
    return render(request, "experiments/metric.html", context)


@page
@require_http_methods(["GET", "POST"])
def metric_new(request: PageRequest) -> HttpResponse:
    _require_maker(request)
    if request.method == "GET":
        return render(request, "experiments/metric_new.html", {"form": MetricForm()})
    form = MetricForm(request.POST)
    made = _make(request, form) if form.is_valid() else None
    if made is None:
        return render(request, "experiments/metric_new.html", {"form": form}, status=400)
    messages.success(request, f"The metric {made.name} is made.")
    return redirect("metric", made.name)


def _make(request: PageRequest, form: MetricForm) -> Metric | None:
    """Make the metric, or leave on the form what is wrong and return None."""
    try:
        return services.create_metric(**form.service_arguments(), actor=actor_of(request))
    except InterlockError as error:
        field, _, told = error.message.partition(": ")
        if field in form.SAID_AS:
            error = type(error)(f"{form.SAID_AS[field]}: {told}")
        tell(form, error)
        return None


@page
@require_POST
def metric_edit(request: PageRequest, name: str) -> HttpResponse:
    _require_maker(request)
    found = selectors.find_metric(name)
    description = request.POST.get("description", "").strip()[:DESCRIPTION_MAX]

    def edit() -> str:
        services.edit_metric(metric=found, description=description, actor=actor_of(request))
        return f"The description of {name} is changed."

    attempt(request, edit)
    return redirect("metric", name)


@page
@require_POST
def metric_delete(request: PageRequest, name: str) -> HttpResponse:
    _require_maker(request)
    found = selectors.find_metric(name)

    text = f"Delete the metric {name}? It cannot be brought back. One that something uses is kept."
    if asked := ask(request, Question(text, "Delete the metric")):
        return asked

    def delete() -> str:
        services.delete_metric(metric=found, actor=actor_of(request))
        return f"The metric {name} is deleted."

    failed = attempt(request, delete)
    return go_to(request, "metric", name) if failed else go_to(request, "metric-list")


def _require_maker(request: PageRequest) -> None:
    if not has_role(request.user, None, Role.OPERATOR):
        raise Forbidden("Metrics are made and changed by operators of all models.")
