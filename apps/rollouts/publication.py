"""Publishes routing tables, and keeps what instances report of them.

A table is compiled and stored in the transaction that changed what serves, under a lock, so that
generations are in the order of the changes. The message on Redis is a nudge; data planes also poll.
"""

from __future__ import annotations

import hashlib
import logging
from datetime import datetime, timedelta

import msgspec
import redis
from django.db import connection, transaction

from apps.lib import redis_client
from apps.lib.actors import Actor
from apps.rollouts.epochs import hold_epoch, lost_generations, was_published
from apps.rollouts.models import BreakerTripRecord, Instance, PublishedTable
from apps.rollouts.routing import compile_table
from apps.rollouts.serving_history import record_changes
from apps.rollouts.snapshots import read_snapshot
from contract.generations import first_of
from contract.messages import BreakerTrip, InstanceReport
from contract.routing import CHANNEL, check, encode

log = logging.getLogger(__name__)

# Any constant: it names the lock that publications take turns on.
PUBLICATION_LOCK = 0x1E710C
# One round trip: this runs under the lock.
NEWEST = """
    SELECT coalesce((SELECT max(number) FROM rollouts_epoch), 0), newest.generation, newest.digest
    FROM (SELECT) AS always LEFT JOIN (
        SELECT generation, digest FROM rollouts_publishedtable ORDER BY generation DESC LIMIT 1
    ) AS newest ON true
"""


def publish_table(*, reason: str, actor: Actor, now: datetime, is_forced: bool = False) -> int:
    """Compile and store the table of what the current transaction sees; return its generation.

    Nothing new is stored when the table would say the same as the last one, unless that is forced:
    what is told apart by its generation needs one of its own.

    Raises:
        contract.routing.TableError: the state contradicts itself; the caller's change is undone.
    """
    if not connection.in_atomic_block:
        raise RuntimeError("publish_table belongs inside the transaction that changed what serves")
    lock_publication()
    epoch, current, digest_before = _newest()
    # The digest is of the content: the generation is not part of what a table says.
    table = compile_table(0, read_snapshot())
    digest = hashlib.sha256(encode(table)).hexdigest()
    if digest == digest_before and not is_forced:
        return current
    table = msgspec.structs.replace(table, generation=max(current + 1, first_of(epoch)))
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


def lock_publication() -> None:
    """Let nobody else publish until the current transaction ends."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [PUBLICATION_LOCK])


def _newest() -> tuple[int, int, str]:
    """Return the present epoch, and the newest table's generation and digest."""
    with connection.cursor() as cursor:
        cursor.execute(NEWEST)
        epoch, generation, digest = cursor.fetchone()
    return epoch, generation or 0, digest or ""


def _wake(generation: int) -> None:
    try:
        with redis_client.connect(timeout_s=0.5) as client:
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
    for trip in _known_trips(report):
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
            "serves_unknown": not was_published(report.applied_generation),
            "refused_generation": report.refused_generation,
            "refusal": report.refusal or "",
            "dropped": report.dropped,
            "is_stopping": report.stopping,
            "pinned": list(report.pinned),
            "reported_at": now,
        },
    )
    return instance


def _known_trips(report: InstanceReport) -> list[BreakerTrip]:
    """Return the trips under tables that this database has not forgotten."""
    if not report.trips:
        return []
    hold_epoch()
    lost = lost_generations()
    return [trip for trip in report.trips if trip.generation not in lost]


def _instant(report: InstanceReport, trip: BreakerTrip, now: datetime) -> datetime:
    return now - timedelta(milliseconds=max(0, report.at_ms - trip.last_at_ms))
