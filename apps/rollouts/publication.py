"""Publishes routing tables, and tells who serves from which.

A table is compiled and stored in the transaction that changed what serves, under a lock, so that
generations are in the order of the changes. The message on Redis is a nudge; data planes also poll.
"""

from __future__ import annotations

import hashlib
import logging
from datetime import datetime, timedelta

import msgspec
import redis
from django.conf import settings
from django.db import connection, transaction
from django.db.models import QuerySet

from apps.lib.actors import Actor
from apps.rollouts.models import BreakerTripRecord, Instance, PublishedTable
from apps.rollouts.routing import compile_table
from apps.rollouts.serving_history import record_changes
from apps.rollouts.snapshots import read_snapshot
from contract.messages import BreakerTrip, InstanceReport
from contract.routing import CHANNEL, check, encode

log = logging.getLogger(__name__)

# Any constant: it names the lock that publications take turns on.
PUBLICATION_LOCK = 0x1E710C
# What an instance reports when all its models are pinned to stable.
PIN_ALL = "*"


def publish_table(*, reason: str, actor: Actor, now: datetime, is_forced: bool = False) -> int:
    """Compile and store the table of what the current transaction sees; return its generation.

    Nothing new is stored when the table would say the same as the last one, unless that is forced:
    what is told apart by its generation needs one of its own.

    Raises:
        contract.routing.TableError: the state contradicts itself; the caller's change is undone.
    """
    if not connection.in_atomic_block:
        raise RuntimeError("publish_table belongs inside the transaction that changed what serves")
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [PUBLICATION_LOCK])
    last = PublishedTable.objects.order_by("-generation").only("generation", "digest").first()
    current = last.generation if last else 0
    # The digest is of the content: the generation is not part of what a table says.
    table = compile_table(0, read_snapshot())
    digest = hashlib.sha256(encode(table)).hexdigest()
    if last is not None and last.digest == digest and not is_forced:
        return current
    table = msgspec.structs.replace(table, generation=current + 1)
    check(table)
    PublishedTable.objects.create(
        generation=table.generation,
        digest=digest,
        document=encode(table),
        reason=reason,
        actor=actor.name,
        published_at=now,
    )
    record_changes(table, reason=reason, actor=actor.name, now=now)
    log.info("table.published generation=%d reason=%s", table.generation, reason)
    transaction.on_commit(lambda: _wake(table.generation))
    return table.generation


def _wake(generation: int) -> None:
    try:
        client = redis.Redis.from_url(
            settings.REDIS_URL, socket_timeout=0.5, socket_connect_timeout=0.5
        )
        with client:
            client.publish(CHANNEL, str(generation))
    except redis.RedisError as error:
        # A lost nudge costs one poll interval.
        log.warning("table.nudge_failed generation=%d %s", generation, error)


def latest_table() -> PublishedTable | None:
    """Return the table that the data planes should serve from, or None before the first one."""
    return PublishedTable.objects.order_by("-generation").first()


@transaction.atomic
def record_report(report: InstanceReport, *, now: datetime) -> Instance:
    """Store what an instance reported: its ack or nack, what it dropped, and that it lives.

    The instants are ours, not the reporter's: its clock may be wrong, so that of a trip it is only
    believed how long before the report it was.
    """
    for trip in report.trips:
        told = {"count": trip.count, "reason": trip.reason, "last_at": _instant(report, trip, now)}
        BreakerTripRecord.objects.update_or_create(
            instance=report.instance,
            boot=report.boot,
            model_name=trip.model,
            version_number=trip.version,
            generation=trip.generation,
            defaults=told,
            create_defaults={**told, "first_at": now},
        )
    instance, _ = Instance.objects.update_or_create(
        name=report.instance,
        defaults={
            "boot": report.boot,
            "applied_generation": report.applied_generation,
            "refused_generation": report.refused_generation,
            "refusal": report.refusal or "",
            "dropped": report.dropped,
            "is_stopping": report.stopping,
            "pinned": list(report.pinned),
            "reported_at": now,
        },
    )
    return instance


def _instant(report: InstanceReport, trip: BreakerTrip, now: datetime) -> datetime:
    return now - timedelta(milliseconds=max(0, report.at_ms - trip.last_at_ms))


def live_instances(now: datetime) -> QuerySet[Instance]:
    """Return the instances that reported lately and are not stopping."""
    since = now - timedelta(seconds=settings.INSTANCE_LIVE_S)
    return Instance.objects.filter(reported_at__gte=since, is_stopping=False)


def silent_instances(now: datetime) -> QuerySet[Instance]:
    """Return the instances that went silent without saying that they stop: they may still serve.

    One that is silent for INSTANCE_FORGOTTEN_S is taken for gone; a person may forget it sooner.
    """
    since = now - timedelta(seconds=settings.INSTANCE_FORGOTTEN_S)
    until = now - timedelta(seconds=settings.INSTANCE_LIVE_S)
    return Instance.objects.filter(reported_at__gte=since, reported_at__lt=until, is_stopping=False)


def unacked(generation: int, now: datetime) -> list[tuple[str, str]]:
    """Return the instances that may serve from an older table than `generation`, with why.

    Those are the live ones that have not applied it, and all that are silent: nobody knows what
    these do, even if their last word was that they had applied it.
    """
    behind = live_instances(now).filter(applied_generation__lt=generation)
    return [
        *((instance.name, _why_behind(instance, generation)) for instance in behind),
        *((each.name, _why_silent(each, now)) for each in silent_instances(now)),
    ]


def _why_silent(instance: Instance, now: datetime) -> str:
    silent_s = (now - instance.reported_at).total_seconds()
    return f"is silent for {silent_s:.0f} s (last served generation {instance.applied_generation})"


def pins_on(model_name: str, now: datetime) -> list[str]:
    """Return in words which live instances have the model pinned to stable: no split works there.

    Only who operates such an instance can release it.
    """
    return [
        f"instance {instance.name} has {model_name} pinned to stable by its operator"
        for instance in live_instances(now).exclude(pinned=[])
        if PIN_ALL in instance.pinned or model_name in instance.pinned
    ]


def _why_behind(instance: Instance, generation: int) -> str:
    refused = instance.refused_generation
    if refused is not None and refused >= generation:
        return f"refused generation {refused}: {instance.refusal}"
    return f"still serves generation {instance.applied_generation}"
