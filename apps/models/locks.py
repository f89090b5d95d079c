"""Locks across processes: one worker at a time runs a job.

The lock is a transaction-level advisory lock on a separate connection. The job itself may commit
freely, a killed worker releases the lock with its connection, and it works behind a pooler in
transaction mode, where a session-level lock would stay with the pooled server connection.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from django.db import DatabaseError, connection
from django.db.backends.base.base import BaseDatabaseWrapper

# The transaction is idle while the job runs.
MAY_IDLE = "SELECT set_config('idle_in_transaction_session_timeout', '0', true)"


@contextmanager
def try_lock(key: int) -> Iterator[bool]:
    """Yield whether the lock was acquired. It is released with the block or the process."""
    own = connection.copy()
    try:
        own.set_autocommit(False)
        with own.cursor() as cursor:
            cursor.execute(MAY_IDLE)
            cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [key])
            is_locked = bool(cursor.fetchone()[0])
        yield is_locked
    finally:
        _release(own)


def _release(own: BaseDatabaseWrapper) -> None:
    # A broken connection has released the lock already.
    with suppress(DatabaseError):
        own.rollback()
    own.close()
