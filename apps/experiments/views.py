"""Pages of experiments: the list, making one, and the page that shows it live."""

from __future__ import annotations

from typing import Any

from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from apps.experiments import selectors, services
from apps.experiments.forms import (
    ExperimentForm,
    MetricForm,
    VariantRows,
    variant_formset,
)
from apps.experiments.models import Experiment
from apps.lib.clock import database_now
from apps.lib.errors import Forbidden, InterlockError
from apps.lib.pages import PageRequest, attempt, go_to, page, render_live
from apps.models.access import actor_of, has_role, require_role
from apps.models.models import RegisteredModel, Role

PAGE_SIZE = 50


@page
@require_GET
def experiment_list(request: PageRequest) -> HttpResponse:
    rows = Paginator(selectors.experiment_rows(), PAGE_SIZE).get_page(request.GET.get("page"))
    context = {"rows": rows, "metrics": selectors.metric_rows()}
    return render(request, "experiments/list.html", context)


@page
@require_GET
def experiment(request: PageRequest, name: str) -> HttpResponse:
    """Answer the page, or its live fragment; 204 when the browser shows it as it is."""
    shown = selectors.find_experiment(name)
    may_operate = has_role(request.user, shown.model, Role.OPERATOR)

    def context() -> dict[str, Any]:
        found = selectors.experiment_context(shown)
        return {**found, "may_operate": may_operate, "now": database_now()}

    return render_live(
        request,
        template="experiments/experiment.html",
        fragment="experiments/parts/live.html",
        stamp=selectors.experiment_stamp(shown, may_operate),
        context=context,
    )


@page
@require_POST
def start(request: PageRequest, name: str) -> HttpResponse:
    chosen = _operated(request, name)

    def action() -> str:
        services.start_experiment(
            experiment=chosen,
            actor=actor_of(request),
            now=database_now(),
            revision=_revision(request),
        )
        return f"{name} is being prepared: it runs as soon as its versions are ready."

    attempt(request, action)
    return go_to(request, "experiment", name)


@page
@require_POST
def stop(request: PageRequest, name: str) -> HttpResponse:
    chosen = _operated(request, name)

    def action() -> str:
        services.stop_experiment(
            experiment=chosen,
            actor=actor_of(request),
            now=database_now(),
            reason=f"stopped by {request.user.get_username()}",
            revision=_revision(request),
        )
        return f"{name} is stopped and its result frozen."

    attempt(request, action)
    return go_to(request, "experiment", name)


@page
@require_http_methods(["GET", "POST"])
def experiment_new(request: PageRequest) -> HttpResponse:
    """Make a draft on the model that `?model=` names, or on the first one there is."""
    models = list(selectors.models_to_compare())
    wanted = request.POST.get("model") or request.GET.get("model")
    model = next((m for m in models if m.name == wanted), models[0] if models else None)
    if model is None:
        return render(request, "experiments/new.html", {"models": models})
    versions = selectors.versions_to_compare(model)
    data = request.POST if request.method == "POST" else None
    form = ExperimentForm(data)
    formset = variant_formset(data, versions)
    context = {"models": models, "model": model, "form": form, "formset": formset}
    if data is None:
        return render(request, "experiments/new.html", context)
    made = _make(request, model, form, formset)
    if made is None:
        return render(request, "experiments/new.html", context, status=400)
    return go_to(request, "experiment", made.name)


@page
@require_http_methods(["GET", "POST"])
def metric_new(request: PageRequest) -> HttpResponse:
    if not has_role(request.user, None, Role.OPERATOR):
        raise Forbidden("Metrics are made by operators of all models.")
    form = MetricForm(request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        try:
            services.create_metric(**form.cleaned_data, actor=actor_of(request))
        except InterlockError as error:
            form.add_error(None, error.message)
        else:
            return go_to(request, "experiment-new")
    status = 400 if request.method == "POST" else 200
    return render(request, "experiments/metric_new.html", {"form": form}, status=status)


def _make(
    request: PageRequest,
    model: RegisteredModel,
    form: ExperimentForm,
    formset: VariantRows,
) -> Experiment | None:
    """Make the draft, or leave on the form what is wrong and return None."""
    require_role(request.user, model, Role.OPERATOR)
    # Both are asked, so that all mistakes show at once.
    if not all([form.is_valid(), formset.is_valid()]):
        return None
    try:
        return services.create_experiment(
            **form.service_arguments(),
            model=model,
            variants=formset.specs(),
            actor=actor_of(request),
            now=database_now(),
        )
    except InterlockError as error:
        form.add_error(None, error.message)
        return None


def _operated(request: PageRequest, name: str) -> Experiment:
    chosen = selectors.find_experiment(name)
    require_role(request.user, chosen.model, Role.OPERATOR)
    return chosen


def _revision(request: PageRequest) -> int | None:
    given = request.POST.get("revision", "")
    return int(given) if given.isdecimal() else None
