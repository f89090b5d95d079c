"""Django's PostgreSQL backend; its pool does not reuse a session that had an error.

A demoted server responds "read-only transaction" on its open sessions for ever and passes every
health check: only a new session reaches the new primary.
"""

from __future__ import annotations

from typing import Any

from django.db.backends.postgresql import base

# Parameters that a server reports on every change (since PostgreSQL 14).
READ_ONLY = ("in_hot_standby", "default_transaction_read_only")


def _is_read_only(connection: Any) -> bool:
    return any(connection.info.parameter_status(name) == "on" for name in READ_ONLY)


class DatabaseWrapper(base.DatabaseWrapper):
    """Closes a session after an error instead of returning it to the pool."""

    # Whether the session had an error since it was opened; Django resets its flag at a rollback.
    _is_suspect = False
    _errors_occurred = False

    @property
    def errors_occurred(self) -> bool:
        """Django's flag: whether an error occurred since the last commit or rollback."""
        return self._errors_occurred

    @errors_occurred.setter
    def errors_occurred(self, value: bool) -> None:
        self._errors_occurred = value
        self._is_suspect = self._is_suspect or value

    def connect(self) -> None:
        super().connect()
        self._is_suspect = False

    def _close(self) -> Any:
        if self._is_suspect and self.connection is not None and self.pool:
            is_demoted = _is_read_only(self.connection)
            # The pool discards a closed session and opens a new one.
            self.connection.close()
            if is_demoted:
                # The other sessions are connected to the same server.
                self.pool.drain()
        return super()._close()  # type: ignore[misc]
