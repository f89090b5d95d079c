"""What pages and the API read of imports."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from uuid import UUID

from django.db.models import QuerySet

from apps.experiments.models import OutcomeImport, RefusedRow
from apps.lib.errors import NotFound

COLUMNS = ["row", "event_id", "metric", "reason"]
# A cell that begins so is a formula to a spreadsheet.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def imports() -> QuerySet[OutcomeImport]:
    return OutcomeImport.objects.order_by("-at", "pk")


def find_import(pk: UUID) -> OutcomeImport:
    """Return it. Raises NotFound."""
    found = OutcomeImport.objects.filter(pk=pk).first()
    if found is None:
        raise NotFound(f"There is no import {pk}.")
    return found


def refused_rows(imported: OutcomeImport) -> QuerySet[RefusedRow]:
    return imported.refused_rows.order_by("row")


def refused_csv(imported: OutcomeImport) -> Iterator[str]:
    """Yield the refused rows that were kept, as lines of CSV."""
    yield _line(COLUMNS)
    for row in refused_rows(imported).values_list(*COLUMNS).iterator():
        yield _line([row[0], *(_plain(text) for text in row[1:])])


def _plain(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def _line(cells: Sequence[object]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()
