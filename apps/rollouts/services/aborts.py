"""The red button: an abort is right from every phase, and of what was promoted it is a rollback."""

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

# The reason of who gave none; they are asked for one afterwards.
ABORTED = "aborted by hand"


@transaction.atomic
def abort_rollout(*, rollout: Rollout, actor: Actor, now: datetime, reason: str = "") -> Rollout:
    """Take all traffic off the target, now; needs no worker, and is right from every phase.

    Of what has succeeded the model is rolled back to the version before, and with it the others of
    its release: then the rollout that does so is returned. What was taken back already stays so.

    Raises:
        Conflict: it succeeded, and its target is stable no more or replaced none.
    """
    row = lock_rollout(rollout, None)
    if row.phase in {Phase.ROLLING_BACK, Phase.ROLLED_BACK, Phase.FAILED}:
        return row
    promoted = [each for each in _of_release(row) if each.phase == Phase.SUCCEEDED]
    if row.is_live:
        before = row.phase
        roll_back(row, reason or ABORTED, actor, now)
        _ask_reason(row, reason)
        audit_rollout(row, "aborted", actor, before)
    else:
        promoted.remove(row)
        row = _take_back_promoted(row, actor, now, reason)
    for each in promoted:
        if can_take_back(each):
            _take_back_promoted(each, actor, now, reason)
    return row


def _of_release(row: Rollout) -> list[Rollout]:
    """Return the row with all others of its release, ended or not; they are locked already."""
    if row.release_id is None:
        return [row]
    others = Rollout.objects.filter(release=row.release_id).exclude(pk=row.pk).order_by("pk")
    return [row, *others.select_related("model", "target__model", "baseline__model")]


def can_take_back(rollout: Rollout) -> bool:
    """Say whether it succeeded and its target serves, in place of a version to go back to."""
    return (
        rollout.phase == Phase.SUCCEEDED
        and rollout.kind != Rollout.Kind.ROLLBACK
        and rollout.baseline_id is not None
        and rollout.model.stable_id == rollout.target_id
        and not LiveSplit.objects.filter(model=rollout.model_id).exists()
    )


def _take_back_promoted(rollout: Rollout, actor: Actor, now: datetime, reason: str) -> Rollout:
    if not can_take_back(rollout):
        raise Conflict(
            f"The rollout has ended already: {rollout.phase} ({rollout.reason}). There is no "
            f"going back from it: {_why_no_way_back(rollout)}"
        )
    back = rollback_model(
        model=rollout.model,
        actor=actor,
        now=now,
        reason=reason or f"{ABORTED} after {rollout.target} became stable",
        to=rollout.baseline,
    )
    _ask_reason(back, reason)
    return back


def _why_no_way_back(rollout: Rollout) -> str:
    if rollout.kind == Rollout.Kind.ROLLBACK:
        return "it was a rollback itself; promote the version that is to serve"
    if rollout.baseline is None:
        return "no version was stable before it"
    if rollout.model.stable_id != rollout.target_id:
        return f"{rollout.target} is stable no more"
    return "another rollout or experiment of the model is live; abort that one"


def _ask_reason(rollout: Rollout, reason: str) -> None:
    if not reason and not rollout.lacks_reason:
        rollout.lacks_reason = True
        rollout.save(update_fields=["lacks_reason"])


@transaction.atomic
def give_reason(*, rollout: Rollout, actor: Actor, now: datetime, reason: str) -> Rollout:
    """Say afterwards why a rollout was aborted: on its page, in its log and in its quarantine.

    Raises:
        Invalid: there is no reason.
        Conflict: it was not aborted, or somebody has said why.
    """
    reason = reason.strip()
    if not reason:
        raise Invalid("reason: say why it was aborted.")
    row = lock_rollout(rollout, None)
    if not row.lacks_reason:
        raise Conflict(f"The rollout lacks no reason: it is {row.phase} ({row.reason})")
    row.reason = f"{row.reason}: {reason}"
    row.lacks_reason = False
    row.save(update_fields=["reason", "lacks_reason"])
    Quarantine.objects.filter(rollout=row).update(reason=f"{ABORTED}: {reason}")
    append_note(row, "said why", reason, actor, now)
    audit_rollout(row, "reason_given", actor, row.phase)
    return row
