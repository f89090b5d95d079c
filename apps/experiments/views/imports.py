"""Views of imports: upload a file, show progress and refused rows."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_safe

from apps.experiments.forms.imports import ImportForm
from apps.experiments.imports import selectors
from apps.experiments.imports.services import start_import
from apps.experiments.models import OutcomeImport
from apps.lib.clock import database_now
from apps.lib.errors import InterlockError
from apps.lib.pages import PageRequest, page, render_live, stamp_of
from apps.models.access import actor_of, has_role, require_role
from apps.models.models import Role
from apps.models.uploads import check_upload, uploaded_files

PAGE_SIZE = 50
ENDED = {OutcomeImport.State.DONE, OutcomeImport.State.FAILED}


@page
@require_http_methods(["GET", "HEAD", "POST"])
def import_list(request: PageRequest) -> HttpResponse:
    """List imports, newest first; a POST uploads a file."""
    is_post = request.method == "POST"
    if is_post:
        require_role(request.user, None, Role.OPERATOR)
    form = ImportForm(request.POST, request.FILES) if is_post else ImportForm()
    status = 200
    if is_post:
        try:
            check_upload(request)
            status = 400
            if form.is_valid():
                imported = _start(request, form)
                messages.success(request, f"{imported.filename} is uploaded; a worker reads it.")
                return redirect("outcome-import-page", imported.pk)
        except InterlockError as error:
            form.add_error(None, error.text)
            status = error.status
    rows = Paginator(selectors.imports(), PAGE_SIZE).get_page(request.GET.get("page"))
    context = {
        "form": form,
        "rows": rows,
        "may_import": has_role(request.user, None, Role.OPERATOR),
        "bytes_max": settings.IMPORT_BYTES_MAX,
    }
    return render(request, "experiments/imports.html", context, status=status)


def _start(request: PageRequest, form: ImportForm) -> OutcomeImport:
    ((name, path),) = uploaded_files(form.cleaned_data["file"])
    return start_import(filename=name, path=path, actor=actor_of(request), now=database_now())


@page
@require_safe
def import_page(request: PageRequest, pk: UUID) -> HttpResponse:
    """Show the page of one import, or its live fragment."""
    shown = selectors.find_import(pk)
    return render_live(
        request,
        template="experiments/import.html",
        fragment="experiments/parts/import_live.html",
        stamp=stamp_of(shown.state, shown.rows),
        context=lambda: _context(request, shown),
    )


def _context(request: PageRequest, shown: OutcomeImport) -> dict[str, Any]:
    refused = sum(shown.refused.values())
    rows = Paginator(selectors.refused_rows(shown), PAGE_SIZE).get_page(request.GET.get("page"))
    return {
        "imported": shown,
        "is_live": shown.state not in ENDED,
        "refused": refused,
        "reasons": sorted(shown.refused.items(), key=lambda item: -item[1]),
        "rows": rows,
        "kept": rows.paginator.count,
    }


@page
@require_safe
def refused_csv(request: PageRequest, pk: UUID) -> HttpResponse:
    lines = "".join(selectors.refused_csv(selectors.find_import(pk)))
    response = HttpResponse(lines, content_type="text/csv; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="refused-{pk}.csv"'
    return response
