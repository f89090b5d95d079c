"""The state that all HTTP connections of one listener share: see `dataplane.http_protocol`."""

from __future__ import annotations

from asyncio import Event, get_running_loop
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from dataplane.config import Limits
from dataplane.exchange import Exchange
from dataplane.request_bounds import SMALL_BYTES_MAX

if TYPE_CHECKING:
    from dataplane.http_protocol import HttpConnection

# Connections with large requests that are read per turn of the event loop.
_READ_PER_TURN = 4


class Server:
    """The shared state of a listener's connections: the application, the limits, a coarse clock.

    `tick` is called once a second and closes connections that are too slow, so that requests need
    no timers of their own.
    """

    def __init__(
        self,
        application: Callable[[Exchange], None],
        limits: Limits,
        call_soon: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        # Called with each complete request; it answers now or later through `Exchange.respond`.
        self.application = application
        # The limits of each connection.
        self.limits = limits
        # Shorter answers are not compressed.
        self.compress_bytes_min = limits.compress_bytes_min
        # Every open connection, for the sweep and for the stop.
        self.connections: set[HttpConnection] = set()
        # Whole seconds since the start: the clock of the time limits.
        self.now_s = 0
        # The `date` header line, updated by each tick.
        self.date = b""
        # Further connections are closed at once.
        self.connections_max = 4_096
        # Set when the stop begins: each connection closes after its last answer.
        self.stopping = False
        # Set when no new connections are accepted: they are closed at once.
        self.closing = False
        # Set when a connection is lost.
        self._lost = Event()
        # Bodies up to this size are not counted in any budget.
        self.small_bytes_max = min(limits.body_bytes_max, SMALL_BYTES_MAX)
        # The bytes of all larger bodies whose requests are unanswered.
        self.held_bytes = 0
        # Calls a function in the next turn of the event loop.
        self._call_soon = call_soon or _call_soon
        # Connections with large requests, in the order in which they are read.
        self._in_line: deque[HttpConnection] = deque()
        # Whether the next turn is scheduled to read some of them.
        self._reading = False

    def abort(self) -> None:
        """Abort every connection."""
        for connection in list(self.connections):
            if connection.transport is not None:
                connection.transport.abort()

    async def emptied(self) -> None:
        """Wait until the last connection is closed."""
        while self.connections:
            self._lost.clear()
            await self._lost.wait()

    def lost(self, connection: HttpConnection) -> None:
        """Forget a closed connection."""
        self.connections.discard(connection)
        self._lost.set()

    def read_in_turn(self, connection: HttpConnection) -> None:
        """Call the connection's `read_on` after other connections with large requests were read."""
        self._in_line.append(connection)
        if not self._reading:
            self._reading = True
            self._call_soon(self._read_next)

    def _read_next(self) -> None:
        for _ in range(min(_READ_PER_TURN, len(self._in_line))):
            self._in_line.popleft().read_on()
        self._reading = bool(self._in_line)
        if self._reading:
            self._call_soon(self._read_next)

    def tick(self, date: bytes) -> None:
        """Advance the clock by one second; `date` is an IMF-fixdate, or empty to send none."""
        self.now_s += 1
        self.date = b"date: %s\r\n" % date if date else b""
        for connection in list(self.connections):
            connection.check_time(self.now_s)

    def stop(self) -> None:
        """Close idle connections now, and the others after their last answers."""
        self.stopping = self.closing = True
        for connection in list(self.connections):
            connection.close_when_idle()


def _call_soon(function: Callable[[], None]) -> None:
    get_running_loop().call_soon(function)
