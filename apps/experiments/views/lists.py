"""View of the list of experiments."""

from __future__ import annotations

from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from apps.experiments.backlog import read_result_backlog
from apps.experiments.forms.filters import ExperimentFilterForm
from apps.experiments.result_tables.notices import backlog_notices
from apps.experiments.selectors import experiments as selectors
from apps.lib.pages import PageRequest, page

PAGE_SIZE = 50


@page
@require_safe
def experiment_list(request: PageRequest) -> HttpResponse:
    form = ExperimentFilterForm(request.GET)
    filters = form.cleaned_data if form.is_valid() else {}
    experiments = selectors.experiment_rows(
        model__name=filters.get("model") or "", state=filters.get("state") or ""
    )
    rows = Paginator(experiments, PAGE_SIZE).get_page(request.GET.get("page"))
    shown = list(rows.object_list)
    selectors.add_guardrails(shown)
    query = request.GET.copy()
    query.pop("page", None)
    context = {
        "form": form,
        "rows": rows,
        "shown": shown,
        "notices": backlog_notices({"backlog": read_result_backlog()}),
        "is_filtered": any(query.values()),
        "filter_query": f"{query.urlencode()}&" if query else "",
    }
    return render(request, "experiments/list.html", context)
