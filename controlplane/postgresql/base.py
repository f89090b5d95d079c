"""Django's PostgreSQL backend, whose pool takes back no session that met an error.

A server that was demoted answers "read-only transaction" on the sessions that were open then, for
good, and passes every check of health: only a new session finds the new primary.
"""

from __future__ import annotations

from typing import Any

from django.db.backends.postgresql import base

# What a server says of itself unasked, whenever it changes (since PostgreSQL 14).
READ_ONLY = ("in_hot_standby", "default_transaction_read_only")


def _is_read_only(connection: Any) -> bool:
    return any(connection.info.parameter_status(name) == "on" for name in READ_ONLY)


class DatabaseWrapper(base.DatabaseWrapper):
    """Closes a session for good where Django would give it back to the pool after an error."""

    # Whether this session met an error since it was opened; Django's own flag ends with a rollback.
    _is_suspect = False
    _errors_occurred = False

    @property
    def errors_occurred(self) -> bool:
        """Whether an error came since the last commit or rollback, as Django keeps it."""
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
            # The pool lets go of what is closed, and opens another.
            self.connection.close()
            if is_demoted:
                # The others were opened to the same server.
                self.pool.drain()
        return super()._close()  # type: ignore[misc]
