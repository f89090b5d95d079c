"""The page of the serving history of a model."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_safe

from apps.lib.pages import PageRequest, page
from apps.models.models import RegisteredModel
from apps.rollouts.forms import InstantForm
from apps.rollouts.selectors.history import view_of, views_of
from apps.rollouts.selectors.provenance import decider_of
from apps.rollouts.serving_history import history_of, serving_at

HISTORY_PAGE = 25


@page
@require_safe
def serving_history(request: PageRequest, name: str) -> HttpResponse:
    model = get_object_or_404(RegisteredModel, name=name)
    form = InstantForm(request.GET if "at" in request.GET else None)
    changes = Paginator(history_of(name), HISTORY_PAGE).get_page(request.GET.get("page"))
    context: dict[str, Any] = {
        "model": model,
        "form": form,
        "changes": changes,
        "rows": views_of(list(changes)),
    }
    if form.is_bound and form.is_valid():
        context |= _at(name, form.cleaned_data["at"])
    status = 400 if form.errors else 200
    return render(request, "rollouts/history.html", context, status=status)


def _at(name: str, at: datetime) -> dict[str, Any]:
    # The list shows whole seconds: a change is in effect in the second that the list shows.
    change = serving_at(name, at.replace(microsecond=999_999))
    if change is None:
        return {"at": at}
    return {"at": at, "served": view_of(change), "decider": decider_of(change)}
