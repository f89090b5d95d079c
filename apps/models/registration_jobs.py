"""Registrations: requests to register a version, which a worker processes.

A request only stores the files. A worker inspects them in a bounded process, one registration at a
time over all workers, so a hostile file blocks no web thread and at most one worker slot, for a
bounded time. The row is the source of truth: the next run repeats the registration of a worker that
was killed.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F

from apps.lib.actors import Actor
from apps.lib.clock import database_now
from apps.lib.errors import InterlockError, Invalid, Unavailable
from apps.models.artifacts import MODEL_FILE
from apps.models.metadata import Metadata
from apps.models.models import ModelVersion, RegisteredModel, Registration
from apps.models.registration import URI_LENGTH_MAX, plain_name, register_directory, register_uri
from apps.models.sources import check_uri
from apps.models.versions import REGISTRATIONS, check_name, require_open

log = logging.getLogger(__name__)

# The maximum number of waiting registrations; beyond it, requests get 503. Each may hold
# ARTIFACT_BYTES_MAX on disk.
WAITING_MAX = 20
# A file that kills its worker is not retried for ever.
ATTEMPTS_MAX = 3
# A run starts no registration after this time, so that other tasks get the worker.
RUN_S = 5.0
KEEP = timedelta(days=30)
State = Registration.State


def submit_file(
    *,
    name: str,
    files: Sequence[tuple[str, Path]],
    metadata: Metadata,
    actor: Actor,
    now: datetime,
) -> Registration:
    """Queue an uploaded ONNX file and its external data for registration.

    `files` are pairs of name and path, the ONNX file first. They are moved.

    Raises:
        Invalid: the name, the metadata or a file name is not valid; nothing was queued.
        Conflict: the model is archived or being deleted.
        Unavailable: `WAITING_MAX` registrations are waiting.
    """
    (file_name, file), *data_files = files
    names = [plain_name(data_name) for data_name, _ in data_files]
    uri = f"upload:{Path(file_name).name}"[:URI_LENGTH_MAX].replace("\0", "")
    row = _new(name, uri, metadata, actor, now)
    row.is_upload = True
    directory = directory_of(row)
    directory.mkdir(parents=True)
    try:
        for data_name, (_, data) in zip(names, data_files, strict=True):
            shutil.move(data, directory / data_name)
        shutil.move(file, directory / MODEL_FILE)
        _save(row)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return row


def submit_uri(
    *, name: str, uri: str, metadata: Metadata, actor: Actor, now: datetime
) -> Registration:
    """Queue a URI for registration.

    Raises:
        Invalid: the name, the URI or the metadata is not valid; nothing was queued.
        Conflict: the model is archived or being deleted.
        Unavailable: `WAITING_MAX` registrations are waiting.
    """
    if len(uri) > URI_LENGTH_MAX:
        raise Invalid(f"at most {URI_LENGTH_MAX} characters.", field="uri")
    check_uri(uri)
    row = _new(name, uri, metadata, actor, now)
    _save(row)
    return row


def directory_of(row: Registration) -> Path:
    return Path(settings.ARTIFACT_DIR) / REGISTRATIONS / str(row.pk)


def _new(name: str, uri: str, metadata: Metadata, actor: Actor, now: datetime) -> Registration:
    check_name(name)
    # Errors are raised at once, not later by the worker.
    metadata.facts()
    require_open(RegisteredModel.objects.filter(name=name).first())
    waiting = Registration.objects.filter(settled_at=None).count()
    if waiting >= WAITING_MAX:
        raise Unavailable(f"{waiting} registrations are waiting, which is the maximum.")
    return Registration(
        model_name=name,
        uri=uri,
        metadata=asdict(metadata),
        actor=actor.name,
        origin=actor.origin,
        stage="waiting for a worker",
        created_at=now,
        stage_at=now,
    )


@transaction.atomic
def _save(row: Registration) -> None:
    # Beat starts a run every second: no request waits for the broker.
    row.save(force_insert=True)
    Registration.objects.filter(settled_at__lt=row.created_at - KEEP).delete()


# --- worker --------------------------------------------------------------------------------------


def work_registrations() -> int:
    """Process waiting registrations, oldest first; return the number of settled ones.

    The caller must hold the lock: one run at a time.
    """
    until, settled = monotonic() + RUN_S, 0
    while monotonic() < until and (row := _claim()) is not None:
        settled += _process(row)
    return settled


def _claim() -> Registration | None:
    """Claim the oldest unsettled row. If it was begun before, its worker died."""
    row = Registration.objects.filter(settled_at=None).order_by("created_at", "pk").first()
    if row is None:
        return None
    unchanged = Registration.objects.filter(pk=row.pk, settled_at=None, attempts=row.attempts)
    values = {"state": State.INSPECTING, "stage": "starting", "stage_at": database_now()}
    if unchanged.update(attempts=F("attempts") + 1, **values) == 0:
        return None
    row.attempts += 1
    return row


def _process(row: Registration) -> bool:
    """Register one row; any error settles it, so that the next row is processed."""
    try:
        if row.attempts > ATTEMPTS_MAX:
            raise Invalid(f"its inspection ended {ATTEMPTS_MAX} times without a result")
        version = _register(row)
    except InterlockError as error:
        refusal: dict[str, Any] = {
            "code": error.code,
            "reason": error.message,
            "detail": error.detail,
        }
        return _settle(row, State.REFUSED, **refusal)
    except Exception as error:
        log.exception("registration.failed %s", row.pk)
        reason = f"It could not be registered: {type(error).__name__}: {error}"
        return _settle(row, State.REFUSED, code="error", reason=reason)
    return _settle(row, State.REGISTERED, version=version)


def _register(row: Registration) -> ModelVersion:
    metadata, actor = Metadata(**row.metadata), Actor(row.actor, row.origin)

    def report_stage(stage: str) -> None:
        Registration.objects.filter(pk=row.pk).update(stage=stage, stage_at=database_now())

    arguments: dict[str, Any] = {
        "name": row.model_name, "uri": row.uri, "metadata": metadata, "actor": actor,
        "now": row.created_at, "report_stage": report_stage,
    }  # fmt: skip
    if row.is_upload:
        return register_directory(directory=directory_of(row), **arguments)
    return register_uri(**arguments)


def _settle(
    row: Registration,
    state: Registration.State,
    *,
    version: ModelVersion | None = None,
    code: str = "",
    reason: str = "",
    detail: dict[str, Any] | None = None,
) -> bool:
    now = database_now()
    # Filter by attempt: a worker that was presumed dead cannot overwrite the result of another.
    unchanged = Registration.objects.filter(pk=row.pk, settled_at=None, attempts=row.attempts)
    settled = unchanged.update(
        state=state,
        version=version,
        code=code,
        reason=reason.replace("\0", ""),
        detail=detail or {},
        stage="",
        stage_at=now,
        settled_at=now,
    )
    shutil.rmtree(directory_of(row), ignore_errors=True)
    log.info("registration.%s %s %s %s", state, row.pk, version or row.model_name, reason)
    return bool(settled)
