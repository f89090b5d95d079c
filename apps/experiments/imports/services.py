"""Start and continue imports of outcome files.

Each step is one transaction that holds the rows' outcomes, the refused rows and the position in the
file, so that a worker continues after a crash with the row after the last recorded one.
"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from time import monotonic
from uuid import UUID

from django.conf import settings
from django.db import transaction

from apps.experiments.imports.files import CHUNK, BadFile, Row, check_file, format_of, read_chunks
from apps.experiments.imports.rows import BadRow, outcome_of
from apps.experiments.ingestion import record_outcomes
from apps.experiments.models import Metric, OutcomeImport, RefusedRow
from apps.experiments.refusals import NOWHERE, Origin, Refusal, count_refusals
from apps.experiments.unexposed import find_unexposed
from apps.lib.actors import Actor
from apps.lib.clock import database_now
from apps.lib.errors import TooLarge
from apps.models.audit import record_audit
from contract.messages import Outcome

DIRECTORY = "imports"
# `Origin.via` of outcomes from files.
VIA = "file"
# Maximum number of refused rows stored per file; further ones are only counted.
REFUSED_KEPT_MAX = 100_000
SHOWN_MAX = 200
STEP_S = 3.0
STEP_ROWS = CHUNK

State = OutcomeImport.State


def start_import(*, filename: str, path: Path, actor: Actor, now: datetime) -> OutcomeImport:
    """Copy the file at `path` and create its import; a worker reads it.

    Raises:
        TooLarge: the file exceeds the limit.
        BadFile: it is empty, has no header, or lacks a column. Nothing is stored.
    """
    size = path.stat().st_size
    if size > settings.IMPORT_BYTES_MAX:
        raise TooLarge(
            f"The file has {size:,} bytes; the limit is {settings.IMPORT_BYTES_MAX:,} bytes "
            "(INTERLOCK_IMPORT_BYTES_MAX). Split the file."
        )
    kind = format_of(path)
    check_file(path, kind)
    new = OutcomeImport(
        filename=filename.replace("\x00", "")[-300:], bytes=size, format=kind, actor=actor.name,
        at=now,
    )  # fmt: skip
    copy = path_of(new.pk)
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, copy)
    with transaction.atomic():
        new.save()
        after = {"filename": new.filename, "bytes": size}
        record_audit(actor=actor, action="outcomes.import", target=f"import {new.pk}", after=after)
    return new


def path_of(pk: UUID) -> Path:
    """Return the path of an import's file, which web and workers share."""
    return Path(settings.ARTIFACT_DIR) / DIRECTORY / str(pk)


def continue_import(within_s: float = STEP_S) -> bool:
    """Continue the oldest unfinished import for about `within_s` seconds; False without one."""
    waiting = OutcomeImport.objects.filter(state__in=[State.WAITING, State.RUNNING])
    imported = waiting.order_by("at").first()
    if imported is None:
        return False
    ends_at = monotonic() + within_s
    path = path_of(imported.pk)
    try:
        if not path.exists():
            raise BadFile(
                "not found by this worker; web and workers must share INTERLOCK_ARTIFACT_DIR"
            )
        for chunk in read_chunks(path, imported.format, imported.rows, STEP_ROWS):
            _record(imported, chunk)
            if monotonic() > ends_at:
                return True
        _end(imported, State.DONE, "")
    except BadFile as error:
        _end(imported, State.FAILED, error.text)
    path.unlink(missing_ok=True)
    return True


@transaction.atomic
def _record(imported: OutcomeImport, chunk: list[Row]) -> None:
    locked = OutcomeImport.objects.select_for_update().get(pk=imported.pk)
    if locked.rows != chunk[0][0] - 1:
        # Another worker was faster; continue at its position.
        imported.rows = locked.rows
        return
    now = database_now()
    origin = Origin(locked.actor, VIA)
    outcomes, numbers, refused = _parse(chunk, origin)
    report = record_outcomes(outcomes, now, origin)
    count_refusals(refused, known=_existing_metrics({each.metric for each in refused}), now=now)
    refused += [replace(each, index=numbers[each.index]) for each in report.refused]
    _store_refused(locked, refused)
    locked.state = State.RUNNING
    locked.rows += len(chunk)
    locked.recorded += report.recorded
    locked.duplicates += report.duplicates
    unexposed = find_unexposed([each.unit_id for each in outcomes if each.unit_id])
    locked.unexposed += sum(each.unit_id in unexposed for each in outcomes)
    locked.refused = dict(Counter(locked.refused) + Counter(each.reason for each in refused))
    locked.save()
    imported.rows = locked.rows


def _existing_metrics(names: set[str]) -> set[str]:
    valid = [name for name in names if "\x00" not in name]
    return set(Metric.objects.filter(name__in=valid).values_list("name", flat=True))


def _parse(
    chunk: list[Row], origin: Origin = NOWHERE
) -> tuple[list[Outcome], list[int], list[Refusal]]:
    """Return the outcomes, their row numbers, and the refusals of malformed rows."""
    outcomes: list[Outcome] = []
    numbers: list[int] = []
    refused: list[Refusal] = []
    for number, fields in chunk:
        try:
            if isinstance(fields, str):
                raise BadRow(fields)
            outcomes.append(outcome_of(fields))
            numbers.append(number)
        except BadRow as error:
            event_id, metric = "", ""
            if isinstance(fields, dict):
                event_id, metric = str(fields["event_id"] or ""), str(fields["metric"] or "")
            refused.append(Refusal(number, event_id, metric, str(error), origin))
    return outcomes, numbers, refused


def _store_refused(imported: OutcomeImport, refused: list[Refusal]) -> None:
    room = max(0, REFUSED_KEPT_MAX - sum(imported.refused.values()))
    rows = sorted(refused, key=lambda each: each.index)[:room]
    RefusedRow.objects.bulk_create(
        RefusedRow(
            imported=imported, row=each.index, event_id=_clean(each.event_id),
            metric=_clean(each.metric), reason=each.reason,
        )
        for each in rows
    )  # fmt: skip


def _clean(text: str) -> str:
    return text.replace("\x00", "")[:SHOWN_MAX]


def _end(imported: OutcomeImport, state: str, error: str) -> None:
    OutcomeImport.objects.filter(pk=imported.pk).update(
        state=state, error=error, ended_at=database_now()
    )
