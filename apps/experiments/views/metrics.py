"""Views of metrics: list, details, create, describe, delete."""

from __future__ import annotations

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from apps.experiments import services
from apps.experiments.forms.metrics import MetricForm
from apps.experiments.models import Metric
from apps.experiments.selectors import metrics as selectors
from apps.experiments.selectors.refusals import REFUSALS_SHOWN_MAX, refusal_rows
from apps.lib.clock import database_now
from apps.lib.confirm import Question, ask
from apps.lib.errors import Forbidden, InterlockError
from apps.lib.forms import add_service_error
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
        "may_create": has_role(request.user, None, Role.OPERATOR),
    }
    return render(request, "experiments/metric_list.html", context)


@page
@require_safe
def metric(request: PageRequest, name: str) -> HttpResponse:
    context = {
        **selectors.metric_context(selectors.find_metric(name), database_now()),
        "may_create": has_role(request.user, None, Role.OPERATOR),
    }
    return render(request, "experiments/metric.html", context)


@page
@require_http_methods(["GET", "POST"])
def metric_new(request: PageRequest) -> HttpResponse:
    _require_operator(request)
    if request.method == "GET":
        return render(request, "experiments/metric_new.html", {"form": MetricForm()})
    form = MetricForm(request.POST)
    new = _create(request, form) if form.is_valid() else None
    if new is None:
        return render(request, "experiments/metric_new.html", {"form": form}, status=400)
    messages.success(request, f"Metric {new.name} created.")
    return redirect("metric", new.name)


def _create(request: PageRequest, form: MetricForm) -> Metric | None:
    """Create the metric; on an error, add it to the form and return None."""
    try:
        return services.create_metric(**form.service_arguments(), actor=actor_of(request))
    except InterlockError as error:
        error.field = form.FORM_FIELDS.get(error.field, error.field)
        add_service_error(form, error)
        return None


@page
@require_POST
def metric_edit(request: PageRequest, name: str) -> HttpResponse:
    _require_operator(request)
    chosen = selectors.find_metric(name)
    description = request.POST.get("description", "").strip()[:DESCRIPTION_MAX]

    def edit() -> str:
        services.edit_metric(metric=chosen, description=description, actor=actor_of(request))
        return f"Description of {name} saved."

    attempt(request, edit)
    return redirect("metric", name)


@page
@require_POST
def metric_delete(request: PageRequest, name: str) -> HttpResponse:
    _require_operator(request)
    chosen = selectors.find_metric(name)

    text = f"Delete the metric {name}? This cannot be undone. A metric in use is not deleted."
    if confirmation := ask(request, Question(text, "Delete the metric")):
        return confirmation

    def delete() -> str:
        services.delete_metric(metric=chosen, actor=actor_of(request))
        return f"Metric {name} deleted."

    failed = attempt(request, delete)
    return go_to(request, "metric", name) if failed else go_to(request, "metric-list")


def _require_operator(request: PageRequest) -> None:
    if not has_role(request.user, None, Role.OPERATOR):
        raise Forbidden("Creating and changing metrics needs the role operator on all models.")
