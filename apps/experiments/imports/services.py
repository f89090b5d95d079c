"""An import from its file to its last row. Each step is one transaction: the rows' outcomes, those
that were refused, and how far it came stand or fall together, so that whoever goes on after a crash
goes on behind the last row that was recorded.
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
from apps.experiments.unexposed import strangers_among
from apps.lib.actors import Actor
from apps.lib.clock import database_now
from apps.lib.errors import TooLarge
from apps.models.audit import record_audit
from contract.messages import Outcome

DIRECTORY = "imports"
# How refusals say that outcomes came from a file.
VIA = "file"
# So many refused rows are kept, of one file; beyond them they are counted only.
REFUSED_KEPT_MAX = 100_000
SHOWN_MAX = 200
STEP_S = 3.0
STEP_ROWS = CHUNK

State = OutcomeImport.State


def start_import(*, filename: str, path: Path, actor: Actor, now: datetime) -> OutcomeImport:
    """Keep the file at `path`, which may be moved, and make its import; a worker reads it.

    Raises:
        TooLarge: it has more bytes than an import may have.
        BadFile: it is empty, has no header, or lacks a column. Nothing is kept.
    """
    size = path.stat().st_size
    if size > settings.IMPORT_BYTES_MAX:
        raise TooLarge(
            f"The file has {size:,} bytes; an import may have {settings.IMPORT_BYTES_MAX:,} "
            "(INTERLOCK_IMPORT_BYTES_MAX). Divide it."
        )
    kind = format_of(path)
    check_file(path, kind)
    made = OutcomeImport(
        filename=filename.replace("\x00", "")[-300:], bytes=size, format=kind, actor=actor.name,
        at=now,
    )  # fmt: skip
    kept = path_of(made.pk)
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, kept)
    with transaction.atomic():
        made.save()
        told = {"filename": made.filename, "bytes": size}
        record_audit(actor=actor, action="outcomes.import", target=f"import {made.pk}", after=told)
    return made


def path_of(pk: UUID) -> Path:
    """Return where an import's file lies, for web and workers alike."""
    return Path(settings.ARTIFACT_DIR) / DIRECTORY / str(pk)


def import_some(within_s: float = STEP_S) -> bool:
    """Go on with the oldest import that is not done, for about so long; False without one."""
    waiting = OutcomeImport.objects.filter(state__in=[State.WAITING, State.RUNNING])
    found = waiting.order_by("at").first()
    if found is None:
        return False
    ends_at = monotonic() + within_s
    path = path_of(found.pk)
    try:
        if not path.exists():
            raise BadFile(
                "file: this worker does not find it: web and workers must share "
                "INTERLOCK_ARTIFACT_DIR"
            )
        for chunk in read_chunks(path, found.format, found.rows, STEP_ROWS):
            _record(found, chunk)
            if monotonic() > ends_at:
                return True
        _end(found, State.DONE, "")
    except BadFile as error:
        _end(found, State.FAILED, error.message.removeprefix("file: "))
    path.unlink(missing_ok=True)
    return True


@transaction.atomic
def _record(imported: OutcomeImport, chunk: list[Row]) -> None:
    locked = OutcomeImport.objects.select_for_update().get(pk=imported.pk)
    if locked.rows != chunk[0][0] - 1:
        # Another worker was quicker; what is read next begins where it stands now.
        imported.rows = locked.rows
        return
    now = database_now()
    origin = Origin(locked.actor, VIA)
    outcomes, numbers, refused = _read(chunk, origin)
    report = record_outcomes(outcomes, now, origin)
    count_refusals(refused, known=_known({each.metric for each in refused}), now=now)
    refused += [replace(each, index=numbers[each.index]) for each in report.refused]
    _keep(locked, refused)
    locked.state = State.RUNNING
    locked.rows += len(chunk)
    locked.recorded += report.recorded
    locked.duplicates += report.duplicates
    strangers = strangers_among([each.unit_id for each in outcomes if each.unit_id])
    locked.strangers += sum(each.unit_id in strangers for each in outcomes)
    locked.refused = dict(Counter(locked.refused) + Counter(each.reason for each in refused))
    locked.save()
    imported.rows = locked.rows


def _known(names: set[str]) -> set[str]:
    wanted = [name for name in names if "\x00" not in name]
    return set(Metric.objects.filter(name__in=wanted).values_list("name", flat=True))


def _read(
    chunk: list[Row], origin: Origin = NOWHERE
) -> tuple[list[Outcome], list[int], list[Refusal]]:
    """Return the outcomes with their rows' numbers, and the rows that are none."""
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


def _keep(imported: OutcomeImport, refused: list[Refusal]) -> None:
    room = max(0, REFUSED_KEPT_MAX - sum(imported.refused.values()))
    rows = sorted(refused, key=lambda each: each.index)[:room]
    RefusedRow.objects.bulk_create(
        RefusedRow(
            imported=imported, row=each.index, event_id=_shown(each.event_id),
            metric=_shown(each.metric), reason=each.reason,
        )
        for each in rows
    )  # fmt: skip


def _shown(text: str) -> str:
    return text.replace("\x00", "")[:SHOWN_MAX]


def _end(imported: OutcomeImport, state: str, error: str) -> None:
    OutcomeImport.objects.filter(pk=imported.pk).update(
        state=state, error=error, ended_at=database_now()
    )
