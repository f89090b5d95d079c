"""Aborts: allowed in every phase. The abort of a promoted rollout is a rollback."""

from __future__ import annotations

from datetime import datetime

from django.db import transaction

from apps.lib.actors import Actor
from apps.lib.errors import Conflict, Invalid
from apps.models.models import LiveSplit
from apps.rollouts.models import Quarantine, Rollout
from apps.rollouts.phases import append_note, roll_back
from apps.rollouts.services.locked_rows import audit_rollout, lock_rollout
from apps.rollouts.services.starts import rollback_model
from apps.rollouts.states import Phase

# The default reason; the page asks for the actual reason afterwards.
ABORTED = "aborted manually"


@transaction.atomic
def abort_rollout(*, rollout: Rollout, actor: Actor, now: datetime, reason: str = "") -> Rollout:
    """Take all traffic off the target now, in any phase. Needs no worker.

    A succeeded rollout is rolled back to its baseline, together with the others of its release;
    the new rollback rollout is returned. A rollout that is already rolled back stays as it is.

    Raises:
        Conflict: it succeeded, and its target is not stable any more or replaced no version.
    """
    row = lock_rollout(rollout, None)
    if row.phase in {Phase.ROLLING_BACK, Phase.ROLLED_BACK, Phase.FAILED}:
        return row
    promoted = [each for each in _of_release(row) if each.phase == Phase.SUCCEEDED]
    if row.is_live:
        before = row.phase
        roll_back(row, reason or ABORTED, actor, now)
        _mark_missing_reason(row, reason)
        audit_rollout(row, "aborted", actor, before)
    else:
        promoted.remove(row)
        row = _roll_back_promoted(row, actor, now, reason)
    for each in promoted:
        if can_roll_back(each):
            _roll_back_promoted(each, actor, now, reason)
    return row


def _of_release(row: Rollout) -> list[Rollout]:
    """Return all rollouts of its release, live or ended; the caller has locked them."""
    if row.release_id is None:
        return [row]
    others = Rollout.objects.filter(release=row.release_id).exclude(pk=row.pk).order_by("pk")
    return [row, *others.select_related("model", "target__model", "baseline__model")]


def can_roll_back(rollout: Rollout) -> bool:
    """Return whether it succeeded, its target is still stable, and it has a baseline."""
    return (
        rollout.phase == Phase.SUCCEEDED
        and rollout.kind != Rollout.Kind.ROLLBACK
        and rollout.baseline_id is not None
        and rollout.model.stable_id == rollout.target_id
        and not LiveSplit.objects.filter(model=rollout.model_id).exists()
    )


def _roll_back_promoted(rollout: Rollout, actor: Actor, now: datetime, reason: str) -> Rollout:
    if not can_roll_back(rollout):
        raise Conflict(
            f"The rollout has already ended: {rollout.phase} ({rollout.reason}). It cannot be "
            f"rolled back: {_no_rollback_reason(rollout)}"
        )
    rollback = rollback_model(
        model=rollout.model,
        actor=actor,
        now=now,
        reason=reason or f"{ABORTED} after {rollout.target} became stable",
        to=rollout.baseline,
    )
    _mark_missing_reason(rollback, reason)
    return rollback


def _no_rollback_reason(rollout: Rollout) -> str:
    if rollout.kind == Rollout.Kind.ROLLBACK:
        return "it is a rollback itself; promote another version instead"
    if rollout.baseline is None:
        return "it replaced no stable version"
    if rollout.model.stable_id != rollout.target_id:
        return f"{rollout.target} is not stable any more"
    return "another rollout or experiment of the model is live; abort that one"


def _mark_missing_reason(rollout: Rollout, reason: str) -> None:
    if not reason and not rollout.lacks_reason:
        rollout.lacks_reason = True
        rollout.save(update_fields=["lacks_reason"])


@transaction.atomic
def record_abort_reason(*, rollout: Rollout, actor: Actor, now: datetime, reason: str) -> Rollout:
    """Store the reason of an abort in the rollout, its log and its quarantine.

    Raises:
        Invalid: the reason is empty.
        Conflict: it was not aborted, or it has a reason already.
    """
    reason = reason.strip()
    if not reason:
        raise Invalid("required.", field="reason")
    row = lock_rollout(rollout, None)
    if not row.lacks_reason:
        raise Conflict(f"The rollout has a reason already: it is {row.phase} ({row.reason})")
    row.reason = f"{row.reason}: {reason}"
    row.lacks_reason = False
    row.save(update_fields=["reason", "lacks_reason"])
    Quarantine.objects.filter(rollout=row).update(reason=f"{ABORTED}: {reason}")
    append_note(row, "gave the reason", reason, actor, now)
    audit_rollout(row, "reason_given", actor, row.phase)
    return row
