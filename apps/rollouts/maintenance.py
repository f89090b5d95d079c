"""Administrative writes: the rollout limit, quarantine, forgotten instances, epochs."""

from __future__ import annotations

from datetime import datetime

from django.db import transaction

from apps.lib.actors import Actor
from apps.lib.errors import Conflict, Invalid
from apps.lib.validation import check_row
from apps.models.audit import record_audit
from apps.models.models import ModelVersion
from apps.rollouts.epochs import highest_epoch_known, latest_generation, lock_epoch, remember_epoch
from apps.rollouts.fleet_status import live_instances
from apps.rollouts.models import (
    BreakerTripRecord,
    Epoch,
    Instance,
    Quarantine,
    RolloutPolicy,
    ShadowRow,
    TelemetryRow,
    TrafficAlarm,
)
from apps.rollouts.publication import lock_publication, publish_table
from contract.generations import EPOCH_MAX


def concurrent_max() -> int | None:
    """Return the maximum number of concurrent rollouts; None: no limit."""
    return RolloutPolicy.objects.values_list("concurrent_max", flat=True).first()


@transaction.atomic
def set_concurrent_max(*, limit: int | None, actor: Actor) -> RolloutPolicy:
    """Set the maximum number of concurrent rollouts (None: no limit); later ones wait.

    Running rollouts continue, even if they are more than the limit.

    Raises:
        Invalid: the limit is below 1.
    """
    policy, _ = RolloutPolicy.objects.select_for_update().get_or_create(pk=1)
    before = policy.concurrent_max
    if before == limit:
        return policy
    policy.concurrent_max = limit
    check_row(policy, {"concurrent_max"})
    policy.save(update_fields=["concurrent_max"])
    record_audit(
        actor=actor,
        action="rollout_policy.changed",
        target="all models",
        before={"concurrent_max": before},
        after={"concurrent_max": limit},
    )
    return policy


@transaction.atomic
def lift_quarantine(*, version: ModelVersion, reason: str, actor: Actor) -> None:
    """Lift the quarantine of a version: its next rollout needs no override.

    Raises:
        Invalid: the reason is empty.
        Conflict: the version is not in quarantine.
    """
    reason = reason.strip()
    if not reason:
        raise Invalid("required; why is the version trusted again?", field="reason")
    held = Quarantine.objects.select_for_update().filter(version=version).first()
    if held is None:
        raise Conflict(f"{version} is not in quarantine.")
    held.delete()
    record_audit(
        actor=actor,
        action="quarantine.lifted",
        target=str(version),
        before={"reason": held.reason, "at": held.at.isoformat()},
        after={"reason": reason},
    )


@transaction.atomic
def forget_instance(*, instance: Instance, actor: Actor, now: datetime) -> None:
    """Delete a silent instance that no longer runs, so that rollouts stop waiting for it.

    If it reports again, it is stored again.

    Raises:
        Conflict: it is live, or already forgotten.
    """
    row = Instance.objects.select_for_update().filter(pk=instance.pk).first()
    if row is None:
        raise Conflict(f"Instance {instance.name} is already forgotten.")
    if live_instances(now).filter(pk=row.pk).exists():
        raise Conflict(
            f"Instance {row.name} is live: it reported at {row.reported_at:%H:%M:%S} UTC. "
            "Stop it instead: rollouts do not wait for an instance that reported its stop."
        )
    record_audit(
        actor=actor,
        action="instance.forgotten",
        target=row.name,
        before={
            "reported_at": row.reported_at.isoformat(),
            "applied_generation": row.applied_generation,
        },
    )
    row.delete()


@transaction.atomic
def start_epoch(*, reason: str, actor: Actor, now: datetime, number: int | None = None) -> Epoch:
    """Make data planes accept the tables of this restored database from now on.

    Data planes follow the new epoch whatever generation they serve. Measurements under generations
    that this database does not know are deleted: they belong to other tables. Rollouts do not wait
    for instances whose last report is older. `number` is the epoch number, by default the highest
    known one plus 1.

    Raises:
        Invalid: the reason is empty, or the number is not above every known epoch.
    """
    reason = reason.strip()
    if not reason:
        raise Invalid("required; what was restored, and to which time?", field="reason")
    lock_epoch()
    lock_publication()
    known = highest_epoch_known()
    number = known + 1 if number is None else number
    if not known < number <= EPOCH_MAX:
        raise Invalid(
            f"{number} is out of range; expected {known + 1} to {EPOCH_MAX}, as data planes "
            f"know epoch {known}.",
            field="epoch",
        )
    restored = latest_generation()
    epoch = Epoch.objects.create(
        number=number,
        restored_generation=restored,
        began_at=now,
        reason=reason,
        actor=actor.name,
    )
    deleted = _delete_measured_above(restored)
    generation = publish_table(
        reason=f"epoch {number}: {reason}", actor=actor, now=now, is_forced=True
    )
    record_audit(
        actor=actor,
        action="epoch.started",
        target=f"epoch {number}",
        before={"generation": restored, "deleted": deleted},
        after={"generation": generation, "reason": reason},
    )
    transaction.on_commit(lambda: remember_epoch(number))
    return epoch


def _delete_measured_above(generation: int) -> dict[str, int]:
    """Delete measurements of tables that this database never published; return row counts."""
    tables = (TelemetryRow, ShadowRow, BreakerTripRecord, TrafficAlarm)
    counts = {
        table._meta.model_name or "": table.objects.filter(generation__gt=generation).delete()[0]
        for table in tables
    }
    return {name: count for name, count in counts.items() if count}
