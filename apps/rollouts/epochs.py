"""Tells which generations this database published, and which a lost database published.

A restored database does not know the newest generations that data planes serve. Until an epoch
starts (`apps.rollouts.maintenance.start_epoch`), data planes are ahead of it and refuse its
tables, and rollouts hold. In the new epoch those generations are lost: measurements under them do
not count.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import redis
from django.db import connection
from django.db.models import Max

from apps.lib import redis_client
from apps.rollouts.models import Epoch, Instance, PublishedTable
from contract.generations import EPOCH_SIZE, epoch_of, first_of

log = logging.getLogger(__name__)

# The highest epoch that was started: Redis is not restored with the database.
EPOCH_KEY = "interlock:epoch"
WAS_PUBLISHED = """
    SELECT %(generation)s <= coalesce((SELECT max(generation) FROM rollouts_publishedtable), 0)
       AND NOT EXISTS (
           SELECT FROM rollouts_epoch
           WHERE restored_generation < %(generation)s
             AND %(generation)s <= number * %(size)s::bigint
       )
"""
# Any constant that no other advisory lock uses.
EPOCH_LOCK = 0x1E710D


@dataclass(frozen=True)
class LostGenerations:
    """The generations between each pair of bounds, both exclusive."""

    bounds: tuple[tuple[int, int], ...] = ()

    def __contains__(self, generation: int) -> bool:
        return any(after < generation < before for after, before in self.bounds)


def current_epoch() -> Epoch | None:
    """Return the epoch of the tables that are published now; None for epoch 0."""
    return Epoch.objects.first()


def lock_epoch_shared() -> None:
    """Keep the epoch until the current transaction ends; required to store measurements.

    Otherwise a transaction from before a new epoch could store measurements that the epoch has
    just deleted.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock_shared(%s)", [EPOCH_LOCK])


def lock_epoch() -> None:
    """Wait for all holders of the shared lock, and lock them out until the transaction ends."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [EPOCH_LOCK])


def lost_generations() -> LostGenerations:
    """Return the generations that the replaced database published."""
    rows = Epoch.objects.values_list("number", "restored_generation")
    return LostGenerations(tuple((restored, first_of(number)) for number, restored in rows))


def latest_generation() -> int:
    """Return the generation of the newest table of this database, 0 before the first."""
    newest = PublishedTable.objects.aggregate(newest=Max("generation"))["newest"]
    return int(newest or 0)


def was_published(generation: int) -> bool:
    """Return whether this database can have published `generation`."""
    # One round trip: this runs for each report of each instance.
    with connection.cursor() as cursor:
        cursor.execute(WAS_PUBLISHED, {"generation": generation, "size": EPOCH_SIZE})
        return bool(cursor.fetchone()[0])


def highest_epoch_known() -> int:
    """Return the highest epoch that the database, any instance or Redis knows of."""
    applied = Instance.objects.aggregate(newest=Max("applied_generation"))["newest"]
    epoch = current_epoch()
    return max(epoch.number if epoch else 0, epoch_of(applied or 0), _epoch_in_redis())


def _epoch_in_redis() -> int:
    try:
        with _client() as client:
            return int(client.get(EPOCH_KEY) or 0)
    except (redis.RedisError, ValueError) as error:
        log.warning("epoch.unknown_to_redis: %s", error)
        return 0


def remember_epoch(number: int) -> None:
    """Store the number in Redis for a database that is restored later. Raises nothing."""
    try:
        with _client() as client:
            client.set(EPOCH_KEY, number)
    except redis.RedisError as error:
        log.warning("epoch.not_remembered %d: %s", number, error)


def _client() -> redis.Redis[bytes]:
    return redis_client.connect(timeout_s=0.5)
