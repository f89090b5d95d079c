"""Publishes changes that no rollout made: ready deployments, model settings.

Level-triggered, and cheap while nothing changes: compiling the table of 10,000 models every second
would use half a core, so row versions are compared first.
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

# All tables that `snapshots.read_snapshot` reads, and its result.
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
# The app experiments, which depends on this one, adds its metrics to the snapshot.
WATCHED = (*(table._meta.db_table for table in READ), "experiments_metric")
# PostgreSQL changes (ctid, xmin) of a row with each write.
STATE = "\nUNION ALL\n".join(
    f"SELECT {position}, count(*), sum(hashtextextended(ctid::text || xmin::text, 0))"  # noqa: S608 (own table names)
    f' FROM "{table}"'
    for position, table in enumerate(WATCHED)
)
State = list[tuple[int, ...]]

# The state of the rows when this process last published or found the table unchanged.
_published_state: State | None = None


def publish_drift() -> bool:
    """Publish the table if rows changed; return False when no row changed."""
    global _published_state
    with transaction.atomic():
        # Read before the rows: a write in between is handled by the next call.
        state = read_state()
        if state == _published_state:
            return False
        publish_table(reason="reconciled", actor=INTERLOCK, now=database_now())
    _published_state = state
    return True


def read_state() -> State:
    """Return a fingerprint that changes with each write to a watched row."""
    with connection.cursor() as cursor:
        cursor.execute(STATE)
        return sorted(tuple(int(value or 0) for value in row) for row in cursor.fetchall())
