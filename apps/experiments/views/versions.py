"""View of the outcomes on a version's page."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.http import HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_safe

from apps.experiments.selectors.versions import outcomes_of
from apps.lib.clock import database_now
from apps.lib.pages import PageRequest, page
from apps.models.models import ModelVersion

FRAGMENT = "experiments/parts/version_outcomes.html"


@page
@require_safe
def version_outcomes(request: PageRequest, name: str, number: int) -> HttpResponse:
    """Render the fragment; it is empty for a version without outcomes."""
    version = get_object_or_404(ModelVersion, model__name=name, number=number)
    metrics = [_parse_hours(each) for each in outcomes_of(version, database_now())]
    return render(request, FRAGMENT, {"metrics": metrics})


def _parse_hours(metric: dict[str, Any]) -> dict[str, Any]:
    hours = [{**hour, "hour": datetime.fromisoformat(hour["hour"])} for hour in metric["hours"]]
    return {**metric, "hours": hours[::-1]}
