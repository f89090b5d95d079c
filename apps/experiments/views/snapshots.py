"""Views of snapshots; the content of a snapshot's URL never changes."""

from __future__ import annotations

from uuid import UUID

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.html import format_html
from django.views.decorators.http import require_POST, require_safe

from apps.experiments.models import ResultSnapshot
from apps.experiments.selectors.results import snapshot_context
from apps.experiments.snapshots import find_snapshot, make_snapshot
from apps.experiments.views.common import find_for_operator
from apps.experiments.views.results import csv_of, json_of
from apps.lib.clock import database_now
from apps.lib.errors import InterlockError, NotFound
from apps.lib.pages import PageRequest, page
from apps.models.access import actor_of


@page
@require_POST
def snapshot_new(request: PageRequest, name: str) -> HttpResponse:
    chosen = find_for_operator(request, name)
    try:
        new = make_snapshot(
            experiment=chosen,
            note=request.POST.get("note", "").strip(),
            actor=actor_of(request),
            now=database_now(),
        )
    except InterlockError as error:
        messages.error(request, error.message)
    else:
        address = reverse("experiment-snapshot", args=[name, new.pk])
        messages.success(request, format_html('<a href="{}">Snapshot</a> created.', address))
    return redirect("experiment", name)


@page
@require_safe
def snapshot(request: PageRequest, name: str, pk: UUID) -> HttpResponse:
    context = snapshot_context(_find(name, pk), request.GET.get("metric"))
    return render(request, "experiments/snapshot.html", context)


@page
@require_safe
def snapshot_csv(request: PageRequest, name: str, pk: UUID) -> HttpResponse:
    return csv_of(_find(name, pk).result, f"{name}-{pk}")


@page
@require_safe
def snapshot_json(request: PageRequest, name: str, pk: UUID) -> HttpResponse:
    return json_of(_find(name, pk).result, f"{name}-{pk}")


def _find(name: str, pk: UUID) -> ResultSnapshot:
    match = find_snapshot(pk)
    if match.experiment.name != name:
        raise NotFound(f"Experiment {name} has no snapshot {pk}.")
    return match
