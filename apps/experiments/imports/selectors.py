"""Query imports for pages and the API."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from uuid import UUID

from django.db.models import QuerySet

from apps.experiments.models import OutcomeImport, RefusedRow
from apps.lib.errors import NotFound

COLUMNS = ["row", "event_id", "metric", "reason"]
# Spreadsheets evaluate a cell that begins with one of these.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def imports() -> QuerySet[OutcomeImport]:
    return OutcomeImport.objects.order_by("-at", "pk")


def find_import(pk: UUID) -> OutcomeImport:
    """Return the import. Raises NotFound."""
    imported = OutcomeImport.objects.filter(pk=pk).first()
    if imported is None:
        raise NotFound(f"There is no import {pk}.")
    return imported


def refused_rows(imported: OutcomeImport) -> QuerySet[RefusedRow]:
    return imported.refused_rows.order_by("row")


def refused_csv(imported: OutcomeImport) -> Iterator[str]:
    """Yield the stored refused rows as lines of CSV."""
    yield _line(COLUMNS)
    for row in refused_rows(imported).values_list(*COLUMNS).iterator():
        yield _line([row[0], *(_escape_formula(text) for text in row[1:])])


def _escape_formula(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def _line(cells: Sequence[object]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()
