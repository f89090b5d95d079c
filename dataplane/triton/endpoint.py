"""The pool of connections to one Triton server."""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING
from weakref import WeakSet

from dataplane.config import Transport as Settings
from dataplane.triton.calls import Call
from dataplane.triton.connection import Connection
from dataplane.triton.health import Health

if TYPE_CHECKING:
    from dataplane.triton.group import Group

CONNECT_TIMEOUT_S = 1.0


class Endpoint:
    """Sends calls over connections that it opens when they are needed, up to a bound."""

    def __init__(
        self,
        address: str,
        loop: asyncio.AbstractEventLoop,
        connections_max: int,
        settings: Settings,
    ) -> None:
        # As the routing table names it: host:port, a scheme before it is allowed.
        self.address = address
        # The same, taken apart.
        self._host, self._port = _host_and_port(address)
        # Opens connections.
        self._loop = loop
        # Connections to one endpoint at most.
        self._connections_max = connections_max
        # Connections that nobody uses; the one used last is taken first.
        self._idle: list[Connection] = []
        # All connections, idle ones and those being opened included.
        self.open = 0
        # Calls that wait for a connection; bounded by the batches in flight of all versions.
        self._waiting: deque[Call] = deque()
        # Connection attempts under way, referenced so that they are not collected.
        self._opening: set[asyncio.Task[None]] = set()
        # How many of them have not ended yet: no more than there are calls that wait.
        self._attempts = 0
        # No table names it any more: what is in flight ends, nothing is kept.
        self._closed = False
        # Calls that were sent here or wait to be, and have not ended.
        self.in_flight = 0
        # Latency, and whether it is ejected.
        self.health = Health(settings)
        # The clusters in which it has siblings.
        self.groups: WeakSet[Group] = WeakSet()
        # Calls that came here because they failed elsewhere, or because elsewhere was slow.
        self.retries = 0
        self.hedges = 0
        # Calls here that were not sent a second time because the budget was spent.
        self.exhausted = 0

    def __repr__(self) -> str:
        return f"<Endpoint {self.address}: {len(self._idle)} idle of {self.open} open>"

    def start(self, call: Call) -> None:
        """Send `call` on a free connection, on a new one, or when one becomes free."""
        call.endpoint = self
        self.in_flight += 1
        while self._idle:
            connection = self._idle.pop()
            if connection.transport is not None and not connection.transport.is_closing():
                connection.send(call)
                return
        self._waiting.append(call)
        if self._attempts < len(self._waiting):
            self._open_one()

    def release(self, connection: Connection) -> None:
        """Take back a connection whose call was answered."""
        waiting = self._waiting
        while waiting:
            call = waiting.popleft()
            if not call.done:
                # To wait for a connection says nothing of how fast answers are.
                call.sent_at = monotonic()
                connection.send(call)
                return
        if self._closed:
            connection.close()
        else:
            self._idle.append(connection)

    def lost(self, connection: Connection, call: Call | None) -> None:
        """Forget a connection; `call` is the one it took down with it."""
        self.open -= 1
        if connection in self._idle:
            self._idle.remove(connection)
        if self._attempts < len(self._waiting):
            self._open_one()
        if call is not None and not call.done:
            # The server may have restarted: what was open before would break as well.
            self._close_idle()
            call.broken(f"{self.address} closed the connection", sent=True)

    def warm(self, connections: int) -> None:
        """Open connections until there are so many of them."""
        for _ in range(min(connections, self._connections_max) - self.open):
            self._open_one()

    def close(self) -> None:
        """Close the idle connections now, and the others when their calls have ended.

        Triton then need not wait for them when it stops.
        """
        self._closed = True
        self._close_idle()

    def _close_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _open_one(self) -> None:
        if self.open >= self._connections_max:
            return
        self.open += 1
        self._attempts += 1
        task = self._loop.create_task(self._connect())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await self._loop.create_connection(
                    lambda: Connection(self), self._host, self._port
                )
        except (OSError, ValueError, OverflowError) as error:
            # The latter two are what a name or a port that cannot exist comes to.
            self._attempts -= 1
            self.open -= 1
            reason = str(error) or "no connection in time"
            self._fail_waiting(f"{self.address}: {reason}")
            return
        self._attempts -= 1
        if connection.transport is None:
            self._fail_waiting(f"{self.address} closed the connection at once")
        else:
            self.release(connection)

    def _fail_waiting(self, reason: str) -> None:
        # Nobody who waits here can be served while the server cannot be reached.
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            if not call.done:
                call.broken(reason, sent=False)


def _host_and_port(address: str) -> tuple[str, int]:
    bare = address.removeprefix("http://").rstrip("/")
    host, _, port = bare.rpartition(":")
    return (host.strip("[]"), int(port)) if host else (bare, 8000)
