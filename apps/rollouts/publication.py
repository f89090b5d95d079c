"""Publishes routing tables and stores the reports of instances.

A table is compiled and stored in the transaction that changed the serving state, under a lock, so
that generations are in the order of the changes. The message on Redis only wakes data planes,
which also poll.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection, transaction

from apps.lib.actors import Actor
from apps.rollouts.epochs import lock_epoch_shared, lost_generations, was_published
from apps.rollouts.models import BreakerTripRecord, Instance, PublishedTable
from apps.rollouts.routing import compile_table
from apps.rollouts.serving_history import record_changes
from apps.rollouts.snapshots import read_snapshot
from apps.rollouts.table_announcements import announce
from contract.generations import first_of, in_words
from contract.messages import BreakerTrip, InstanceReport
from contract.routing import check, encode, with_generation

log = logging.getLogger(__name__)

# Any constant that no other advisory lock uses.
PUBLICATION_LOCK = 0x1E710C
# The maximum number of reasons that are listed for one table.
REASONS_MAX = 20
# One round trip: this runs under the lock.
NEWEST = """
    SELECT coalesce((SELECT max(number) FROM rollouts_epoch), 0), newest.generation, newest.digest
    FROM (SELECT) AS always LEFT JOIN (
        SELECT generation, digest FROM rollouts_publishedtable ORDER BY generation DESC LIMIT 1
    ) AS newest ON true
"""


@dataclass(frozen=True)
class Cause:
    """Why a table is published, and by whom; `model` is the model that it changes."""

    reason: str
    actor: str
    model: str = ""


@dataclass(frozen=True)
class Newest:
    """The newest table (0 and empty before the first one) and the current epoch."""

    epoch: int
    generation: int
    digest: str

    @property
    def following(self) -> int:
        """The next generation: the first one of a new epoch, or the number after this one."""
        return max(self.generation + 1, first_of(self.epoch))


def publish_table(
    *, reason: str, actor: Actor, now: datetime, is_forced: bool = False, model: str = ""
) -> int:
    """Compile and store the table of the state in this transaction; return its generation.

    A table with the same content as the last one is not stored, unless `is_forced`: windows belong
    to a step by their generation, so each step needs its own. `model` is the model that changes
    for that reason, if it is a single one.

    Raises:
        contract.routing.TableError: the state is inconsistent; the caller's change is undone.
    """
    if not connection.in_atomic_block:
        raise RuntimeError("publish_table must run in the transaction of the change")
    cause = Cause(reason, actor.name, model)
    if (together := _together.get()) is not None:
        return together.add(cause, now)
    return _publish(_lock_newest(), [cause], now, is_forced=is_forced)


class Together:
    """Collects the publications of one transaction into one table, stored at its end."""

    def __init__(self) -> None:
        self._newest: Newest | None = None
        self._causes: list[Cause] = []
        self._now: datetime | None = None

    def add(self, cause: Cause, now: datetime) -> int:
        """Add a cause; return the generation of the joint table."""
        # The lock is taken here, so that the generation is known before the table is compiled.
        self._newest = self._newest or _lock_newest()
        self._causes.append(cause)
        self._now = now
        return self._newest.following

    @contextmanager
    def part(self) -> Iterator[None]:
        """Remove the causes that the block added if it raises."""
        count = len(self._causes)
        try:
            yield
        except BaseException:
            del self._causes[count:]
            raise

    def publish(self) -> None:
        """Publish the table if there is any cause."""
        if self._newest is not None and self._now is not None and self._causes:
            _publish(self._newest, self._causes, self._now, is_forced=True)


# The collector of the current transaction, if any.
_together: ContextVar[Together | None] = ContextVar("together", default=None)


@contextmanager
def one_publication() -> Iterator[Together]:
    """Merge all publications of the block into one table, stored when the block succeeds.

    The block must not wait for locks that others take before they publish: deadlock.
    """
    together = Together()
    token = _together.set(together)
    try:
        yield together
    finally:
        _together.reset(token)
    together.publish()


def _publish(newest: Newest, causes: list[Cause], now: datetime, *, is_forced: bool) -> int:
    table = compile_table(0, read_snapshot())
    content = encode(table)
    # The digest covers the content without the generation.
    digest = hashlib.sha256(content).hexdigest()
    if digest == newest.digest and not is_forced:
        return newest.generation
    check(table)
    generation = newest.following
    stored = PublishedTable.objects.create(
        generation=generation,
        digest=digest,
        document=with_generation(content, generation),
        reason=_joint_reason(causes),
        actor=causes[0].actor,
        published_at=now,
    )
    record_changes(table, stored, {each.model: (each.reason, each.actor) for each in causes})
    log.info("table.published generation=%s reason=%s", in_words(generation), stored.reason)
    transaction.on_commit(lambda: announce(stored.generation, stored.tag))
    return generation


def _joint_reason(causes: list[Cause]) -> str:
    reasons = list(dict.fromkeys(each.reason for each in causes))
    if len(reasons) == 1:
        return reasons[0]
    more = f"; and {len(reasons) - REASONS_MAX} more" if len(reasons) > REASONS_MAX else ""
    return f"{len(reasons)} changes: {'; '.join(reasons[:REASONS_MAX])}{more}"


def lock_publication() -> None:
    """Take the lock of publications until the current transaction ends."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [PUBLICATION_LOCK])


def _lock_newest() -> Newest:
    lock_publication()
    with connection.cursor() as cursor:
        cursor.execute(NEWEST)
        epoch, generation, digest = cursor.fetchone()
    return Newest(epoch, generation or 0, digest or "")


def latest_table() -> PublishedTable | None:
    """Return the newest table; None before the first one."""
    return PublishedTable.objects.order_by("-generation").first()


def record_report(report: InstanceReport, *, now: datetime) -> Instance:
    """Store the report of an instance: ack or nack, dropped messages, breaker trips.

    Times are of the database clock, as the clock of the instance may be wrong. Of a trip only its
    age at the time of the report is used.
    """
    if report.trips:
        _record_trips(report, now)
    fields: dict[str, Any] = {
        "boot": report.boot,
        "applied_generation": report.applied_generation,
        "serves_unknown": not was_published(report.applied_generation),
        "refused_generation": report.refused_generation,
        "refusal": report.refusal or "",
        "dropped": report.dropped,
        "is_stopping": report.stopping,
        "pinned": list(report.pinned),
        "reported_at": now,
    }
    # One statement: a fleet reports every second or two.
    (instance,) = Instance.objects.bulk_create(
        [Instance(name=report.instance, **fields)],
        update_conflicts=True,
        unique_fields=["name"],
        update_fields=[*fields],
    )
    return instance


@transaction.atomic
def _record_trips(report: InstanceReport, now: datetime) -> None:
    for trip in _known_trips(report):
        values = {
            "count": trip.count,
            "reason": trip.reason,
            "last_at": _trip_at(report, trip, now),
        }
        BreakerTripRecord.objects.update_or_create(
            instance=report.instance,
            boot=report.boot,
            model_name=trip.model,
            version_number=trip.version,
            generation=trip.generation,
            defaults=values,
            create_defaults={**values, "first_at": now},
        )


def _known_trips(report: InstanceReport) -> list[BreakerTrip]:
    """Return the trips without those of lost generations."""
    lock_epoch_shared()
    lost = lost_generations()
    return [trip for trip in report.trips if trip.generation not in lost]


def _trip_at(report: InstanceReport, trip: BreakerTrip, now: datetime) -> datetime:
    return now - timedelta(milliseconds=max(0, report.at_ms - trip.last_at_ms))
