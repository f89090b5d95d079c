"""Views to create and edit drafts. Invalid input is shown again with all errors at once."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from apps.experiments import services
from apps.experiments.forms.drafts import DraftForm, EditForm
from apps.experiments.forms.rows import MetricUseRows, VariantRows, metric_use_rows, variant_rows
from apps.experiments.models import Experiment, Metric
from apps.experiments.selectors import experiments as selectors
from apps.experiments.selectors.metrics import metric_rows
from apps.experiments.states import ExperimentState
from apps.experiments.views.common import find_for_operator
from apps.lib.clock import database_now
from apps.lib.errors import InterlockError
from apps.lib.forms import add_service_error
from apps.lib.pages import PageRequest, page
from apps.models.access import actor_of, has_role, require_role
from apps.models.models import RegisteredModel, Role


@page
@require_http_methods(["GET", "POST"])
def experiment_new(request: PageRequest) -> HttpResponse:
    """Create a draft on the model that `?model=` names, or on the first model."""
    models = list(selectors.models_to_compare())
    requested = request.POST.get("model") or request.GET.get("model")
    model = next((m for m in models if m.name == requested), models[0] if models else None)
    if model is None:
        return render(request, "experiments/new.html", {"models": models})
    data = request.POST if request.method == "POST" else None
    form = DraftForm(data)
    tables = _tables(request, model, None)
    context = {
        "models": models,
        "model": model,
        "form": form,
        "may_operate": has_role(request.user, model, Role.OPERATOR),
        **tables,
    }
    if data is None:
        return render(request, "experiments/new.html", context)
    require_role(request.user, model, Role.OPERATOR)
    draft = None
    if _all_valid(form, tables):
        draft = _create(request, model, form, tables)
    if draft is None:
        return render(request, "experiments/new.html", context, status=400)
    messages.success(request, f"Draft {draft.name} created; nothing is routed yet.")
    return redirect("experiment", draft.name)


@page
@require_http_methods(["GET", "POST"])
def experiment_edit(request: PageRequest, name: str) -> HttpResponse:
    draft = find_for_operator(request, name)
    if draft.state != ExperimentState.DRAFT:
        messages.error(request, f"{name} is {draft.state}; only a draft can be edited.")
        return redirect("experiment", name)
    data = request.POST if request.method == "POST" else None
    form = EditForm.of(draft, data)
    tables = _tables(request, draft.model, draft)
    context = {"model": draft.model, "draft": draft, "form": form, **tables}
    if data is None:
        return render(request, "experiments/edit.html", context)
    status = 400
    if _all_valid(form, tables):
        status = _edit(request, draft, form, tables)
    if status != 200:
        return render(request, "experiments/edit.html", context, status=status)
    messages.success(request, f"Draft {name} saved.")
    return redirect("experiment", name)


def _tables(
    request: PageRequest, model: RegisteredModel, draft: Experiment | None
) -> dict[str, Any]:
    data = request.POST if request.method == "POST" else None
    more = request.GET.get("rows") == "more"
    metrics: dict[str, Metric] = {metric.name: metric for metric in metric_rows()}
    versions = selectors.versions_to_compare(model)
    return {
        "metrics": metric_use_rows(data, metrics, draft, more=more),
        "variants": variant_rows(data, versions, draft, more=more),
        "has_metrics": bool(metrics),
    }


def _all_valid(form: DraftForm, tables: dict[str, Any]) -> bool:
    # Validate all, so that all errors show at once.
    return all([form.is_valid(), tables["metrics"].is_valid(), tables["variants"].is_valid()])


def _arguments(form: DraftForm, tables: dict[str, Any]) -> dict[str, Any]:
    metrics: MetricUseRows = tables["metrics"]
    variants: VariantRows = tables["variants"]
    return {
        **form.settings(),
        "metrics": metrics.choices(),
        "variants": variants.specs(),
    }


def _create(
    request: PageRequest, model: RegisteredModel, form: DraftForm, tables: dict[str, Any]
) -> Experiment | None:
    """Create the draft; on an error, add it to the form and return None."""
    try:
        return services.create_experiment(
            name=form.cleaned_data["name"],
            model=model,
            actor=actor_of(request),
            now=database_now(),
            **_arguments(form, tables),
        )
    except InterlockError as error:
        add_service_error(form, error)
        return None


def _edit(request: PageRequest, draft: Experiment, form: DraftForm, tables: dict[str, Any]) -> int:
    """Change the draft and return 200, or add the error to the form and return its status."""
    try:
        services.edit_experiment(
            experiment=draft,
            actor=actor_of(request),
            now=database_now(),
            revision=form.cleaned_data["revision"],
            **_arguments(form, tables),
        )
    except InterlockError as error:
        add_service_error(form, error)
        return error.status
    return 200
