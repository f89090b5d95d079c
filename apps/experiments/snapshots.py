"""Store and find result snapshots; each has a URL whose content never changes."""

from __future__ import annotations

import uuid
from datetime import datetime

from django.db import transaction
from django.db.models import QuerySet

from apps.experiments.models import Experiment, ResultSnapshot
from apps.lib.actors import Actor
from apps.lib.errors import Conflict, Invalid, NotFound
from apps.models.audit import record_audit

NOTE_LENGTH_MAX = 500


@transaction.atomic
def make_snapshot(
    *, experiment: Experiment, note: str = "", actor: Actor, now: datetime
) -> ResultSnapshot:
    """Store the current result. Raises Conflict without a result, Invalid for a long note."""
    if len(note) > NOTE_LENGTH_MAX:
        raise Invalid(f"note has {len(note)} characters; the limit is {NOTE_LENGTH_MAX}")
    # Snapshot the stored result, not the one that the caller read earlier.
    experiment.refresh_from_db(fields=["result"])
    snapshot = keep_result(experiment, note, actor, now)
    if snapshot is None:
        raise Conflict(f"experiment {experiment.name} has no result yet")
    record_audit(
        actor=actor,
        action="experiment.snapshot",
        target=experiment.name,
        after={"snapshot": str(snapshot.pk), "note": note},
    )
    return snapshot


def keep_result(
    experiment: Experiment, note: str, actor: Actor, now: datetime
) -> ResultSnapshot | None:
    """Store the current result in the caller's transaction; None if there is no result yet."""
    if not experiment.result:
        return None
    return ResultSnapshot.objects.create(
        experiment=experiment, at=now, result=experiment.result, note=note, actor=actor.name
    )


def snapshots_of(experiment: Experiment) -> QuerySet[ResultSnapshot]:
    """Return an experiment's snapshots, newest first."""
    return experiment.snapshots.select_related("experiment").order_by("-at", "-id")


def find_snapshot(pk: str | uuid.UUID) -> ResultSnapshot:
    """Return the snapshot with its experiment. Raises NotFound."""
    try:
        key = uuid.UUID(str(pk))
    except ValueError:
        raise NotFound(f"{pk!r} is not a valid snapshot id.") from None
    rows = ResultSnapshot.objects.select_related("experiment__model")
    snapshot = rows.filter(pk=key).first()
    if snapshot is None:
        raise NotFound(f"There is no snapshot {key}.")
    return snapshot
