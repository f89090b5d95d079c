"""The list of experiments."""

from __future__ import annotations

from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from apps.experiments.backlog import backlog_of_results
from apps.experiments.forms.filters import ExperimentFilterForm
from apps.experiments.selectors import experiments as selectors
from apps.experiments.tables.notices import backlog_notices
from apps.lib.pages import PageRequest, page

PAGE_SIZE = 50


@page
@require_safe
def experiment_list(request: PageRequest) -> HttpResponse:
    form = ExperimentFilterForm(request.GET)
    asked = form.cleaned_data if form.is_valid() else {}
    found = selectors.experiment_rows(
        model__name=asked.get("model") or "", state=asked.get("state") or ""
    )
    rows = Paginator(found, PAGE_SIZE).get_page(request.GET.get("page"))
    shown = list(rows.object_list)
    selectors.add_guardrails(shown)
    filters = request.GET.copy()
    filters.pop("page", None)
    context = {
        "form": form,
        "rows": rows,
        "shown": shown,
        "notices": backlog_notices({"backlog": backlog_of_results()}),
        "is_filtered": any(filters.values()),
        "filter_query": f"{filters.urlencode()}&" if filters else "",
    }
    return render(request, "experiments/list.html", context)
