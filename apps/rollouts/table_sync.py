"""Publishes what changed without a rollout: a deployment that became ready, a model's settings.

Level-triggered, and cheap while nothing changes: compiling the table of ten thousand models each
second would keep half a core busy, so the versions of the rows are looked at first.
"""

from __future__ import annotations

from django.db import connection, transaction
from django.db.models import Model

from apps.lib.actors import INTERLOCK
from apps.lib.clock import database_now
from apps.models.models import (
    ApiKey,
    Deployment,
    LiveSplit,
    ModelVersion,
    RegisteredModel,
    ServingCluster,
    ServingPolicy,
    Tenant,
)
from apps.rollouts.models import PublishedTable
from apps.rollouts.publication import publish_table

# All that `snapshots.read_snapshot` reads, and what came of it.
READ: tuple[type[Model], ...] = (
    ApiKey,
    Deployment,
    LiveSplit,
    ModelVersion,
    PublishedTable,
    RegisteredModel,
    ServingCluster,
    ServingPolicy,
    Tenant,
)
# The last belongs to an app above this one, which hands it to the snapshot.
WATCHED = (*(table._meta.db_table for table in READ), "experiments_metric")
# PostgreSQL gives a row another (ctid, xmin) each time it is written, by whomever.
STATE = "\nUNION ALL\n".join(
    f"SELECT {position}, count(*), sum(hashtextextended(ctid::text || xmin::text, 0))"  # noqa: S608 (tables of ours)
    f' FROM "{table}"'
    for position, table in enumerate(WATCHED)
)
State = list[tuple[int, ...]]

# The state of the rows when this process last saw that the table says what they say.
_seen: State | None = None


def publish_drift() -> bool:
    """Publish the table if it no longer says what the rows say; False when no row had changed."""
    global _seen
    with transaction.atomic():
        # Read before the rows are: what is written in between is looked at once more.
        state = read_state()
        if state == _seen:
            return False
        publish_table(reason="reconciled", actor=INTERLOCK, now=database_now())
    _seen = state
    return True


def read_state() -> State:
    """Return what differs as soon as somebody wrote a row that the table is made from."""
    with connection.cursor() as cursor:
        cursor.execute(STATE)
        return sorted(tuple(int(value or 0) for value in row) for row in cursor.fetchall())
