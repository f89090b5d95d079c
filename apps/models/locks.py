"""Lets one worker at a time do a job, without a row that a killed worker would leave behind.

The lock is a transaction's, on a connection of its own: what the job does commits as it likes, a
worker that is killed gives the turn back with its connection, and it works behind a pooler in
transaction mode, where a session's lock would stay with whichever server connection took it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from django.db import DatabaseError, connection
from django.db.backends.base.base import BaseDatabaseWrapper

# It does nothing for as long as the job takes.
MAY_IDLE = "SELECT set_config('idle_in_transaction_session_timeout', '0', true)"


@contextmanager
def try_lock(key: int) -> Iterator[bool]:
    """Give whether nobody else has the turn; it ends with the block, or with the process."""
    own = connection.copy()
    try:
        own.set_autocommit(False)
        with own.cursor() as cursor:
            cursor.execute(MAY_IDLE)
            cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [key])
            is_ours = bool(cursor.fetchone()[0])
        yield is_ours
    finally:
        _give_back(own)


def _give_back(own: BaseDatabaseWrapper) -> None:
    # A connection that broke meanwhile has given it back itself.
    with suppress(DatabaseError):
        own.rollback()
    own.close()
