"""Idle connections to one endpoint, and which of them can be trusted.

A middlebox may have silently forgotten an idle connection: requests on it are lost, and so are
those on its siblings. Of connections that were idle for a while, therefore, one is tried alone;
other calls open new connections until it has answered. If it stays silent its siblings are dropped
with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataplane.triton.connection import Connection

# Connections idle for at most this long are alive: no middlebox forgets them so soon.
TRUSTED_S = 2.0


class Idle:
    """Times are monotonic seconds, passed in by the caller."""

    __slots__ = ("_connections", "_idle_max_s", "_proven_at", "_trial")

    def __init__(self, idle_max_s: float) -> None:
        # Maximum idle time of a connection.
        self._idle_max_s = idle_max_s
        # The last used is taken first, so that the others grow old and are closed.
        self._connections: list[Connection] = []
        # The connection on trial, while its response is due.
        self._trial: Connection | None = None
        # When a trial last succeeded: its siblings are alive as well.
        self._proven_at = float("-inf")

    def __len__(self) -> int:
        return len(self._connections)

    def take(self, now: float) -> Connection | None:
        """Return a connection to use, or None if a new one is better."""
        connections = self._connections
        while connections:
            connection = connections[-1]
            if connection.transport is None or connection.transport.is_closing():
                connections.pop()
                continue
            idle_since = connection.idle_since
            if now - idle_since <= TRUSTED_S or now - self._proven_at <= TRUSTED_S:
                return connections.pop()
            if now - idle_since > self._idle_max_s:
                # All others are older.
                self.close()
            elif self._trial is None:
                self._trial = connections.pop()
                return self._trial
            else:
                # The new connection replaces one that cannot be trusted.
                connections.pop(0).close()
            return None
        return None

    def put(self, connection: Connection, now: float) -> None:
        """Keep a connection whose call was answered."""
        connection.idle_since = now
        self._connections.append(connection)

    def answered(self, connection: Connection, now: float) -> None:
        """Record that a call on the connection was answered."""
        if connection is self._trial:
            self._trial = None
            self._proven_at = now

    def silent(self, connection: Connection) -> None:
        """Record that no response came; after a trial, drop the siblings that are as old."""
        if connection is self._trial:
            self._trial = None
            self._drop(
                [each for each in self._connections if each.idle_since <= connection.used_at]
            )

    def discard(self, connection: Connection) -> None:
        """Forget a closed connection."""
        if connection is self._trial:
            self._trial = None
        if connection in self._connections:
            self._connections.remove(connection)

    def sweep(self, now: float) -> None:
        """Close connections that were idle for too long, or are too old."""
        self._drop(
            [
                each
                for each in self._connections
                if now - each.idle_since > self._idle_max_s or now >= each.retire_at
            ]
        )

    def close(self) -> None:
        self._drop(list(self._connections))

    def _drop(self, connections: list[Connection]) -> None:
        for connection in connections:
            self._connections.remove(connection)
            connection.close()
