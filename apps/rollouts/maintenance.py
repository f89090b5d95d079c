"""What a person sets right around rollouts: how many at once, a quarantine, a dead instance, and a
database that was restored."""

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
    """Return how many rollouts may be under way at once; None: any number."""
    return RolloutPolicy.objects.values_list("concurrent_max", flat=True).first()


@transaction.atomic
def set_concurrent_max(*, limit: int | None, actor: Actor) -> RolloutPolicy:
    """Let so many rollouts be under way at once (None: any number); the others wait their turn.

    What is under way goes on, even if that is more.

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
    """Let a version that was rolled back be rolled out again without an override.

    Raises:
        Invalid: no reason is given.
        Conflict: the version is not in quarantine.
    """
    reason = reason.strip()
    if not reason:
        raise Invalid("reason: say why the version may be trusted again.")
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
    """Stop waiting for an instance that went silent: whoever forgets it knows that it is gone.

    One that reports again is known again.

    Raises:
        Conflict: it is live, or somebody else has forgotten it.
    """
    row = Instance.objects.select_for_update().filter(pk=instance.pk).first()
    if row is None:
        raise Conflict(f"Instance {instance.name} is forgotten already.")
    if live_instances(now).filter(pk=row.pk).exists():
        raise Conflict(
            f"Instance {row.name} is live: it reported at {row.reported_at:%H:%M:%S} UTC. "
            "Stop it; what stops says so and is not waited for."
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
    """Have data planes take the tables of this database, which was restored, from now on.

    What they serve from then, they follow it to, whatever its generation. All that was measured
    under generations that this database has forgotten is deleted: they were other tables. Nobody
    waits for instances that were last heard of before. `number` is the epoch's, by default the one
    after the highest that anybody knows of.

    Raises:
        Invalid: no reason is given, or the number is not above every epoch known of.
    """
    reason = reason.strip()
    if not reason:
        raise Invalid("reason: say what was restored, and to when.")
    lock_epoch()
    lock_publication()
    known = highest_epoch_known()
    number = known + 1 if number is None else number
    if not known < number <= EPOCH_MAX:
        raise Invalid(
            f"epoch: {number} is not from {known + 1} to {EPOCH_MAX}; data planes know {known}."
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
    """Delete what was measured under tables that this database never published; return how much."""
    tables = (TelemetryRow, ShadowRow, BreakerTripRecord, TrafficAlarm)
    counts = {
        table._meta.model_name or "": table.objects.filter(generation__gt=generation).delete()[0]
        for table in tables
    }
    return {name: count for name, count in counts.items() if count}
