"""The pool of connections to one Triton server.

A name is resolved for each new connection, and again every few seconds: connections to an address
that it no longer has are retired once their calls have ended. None is used beyond its age, so that
a balancer that hides addresses gets to spread them anew.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from functools import cache
from ipaddress import ip_address
from random import uniform
from socket import SOCK_STREAM
from time import monotonic
from typing import TYPE_CHECKING
from weakref import WeakSet

from dataplane.config import Transport as Settings
from dataplane.triton.calls import Call
from dataplane.triton.connection import Connection
from dataplane.triton.health import Health
from dataplane.triton.idle import Idle

if TYPE_CHECKING:
    from dataplane.triton.group import Group

log = logging.getLogger("interlock.dataplane")

CONNECT_TIMEOUT_S = 1.0
RESOLVE_TIMEOUT_S = 5.0
PORTS = {"http": 8000, "https": 443}


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
        self._scheme, self._host, self._port = take_apart(address)
        # Opens connections.
        self._loop = loop
        # Connections to one endpoint at most.
        self._connections_max = connections_max
        # Ages and intervals.
        self._settings = settings
        # Connections that nobody uses.
        self._idle = Idle(settings.connection_idle_s)
        # All that are made, to be retired when their address is no longer the name's.
        self._connections: set[Connection] = set()
        # When the name is resolved again, monotonic; never where there is none.
        self._resolve_at = float("inf") if _is_address(self._host) else float("-inf")
        # All connections, idle ones and those being opened included.
        self.open = 0
        # Calls that wait for a connection; bounded by the batches in flight of all versions.
        self._waiting: deque[Call] = deque()
        # What is under way, referenced so that it is not collected.
        self._tasks: set[asyncio.Task[None]] = set()
        # How many of them make a connection: no more than there are calls that wait.
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
        now = monotonic()
        if not self.in_flight:
            self.health.owes(now)
        self.in_flight += 1
        connection = self._idle.take(now)
        if connection is not None:
            connection.send(call, now)
            return
        self._waiting.append(call)
        if self._attempts < len(self._waiting):
            self._open_one()

    def release(self, connection: Connection) -> None:
        """Take back a connection whose call was answered."""
        now = monotonic()
        self._idle.answered(connection, now)
        if now >= connection.retire_at:
            connection.close()
            return
        waiting = self._waiting
        while waiting:
            call = waiting.popleft()
            if not call.done:
                # To wait for a connection says nothing of how fast answers are.
                call.sent_at = now
                connection.send(call, now)
                return
        if self._closed:
            connection.close()
        else:
            self._idle.put(connection, now)

    def silent(self, connection: Connection) -> None:
        """Take note that a call on the connection had no answer in time."""
        self._idle.silent(connection)

    def made(self, connection: Connection) -> None:
        """Take note of a new connection, and say until when it is used."""
        self._connections.add(connection)
        # Those that were made together must not end together.
        age_s = self._settings.connection_age_s * uniform(0.8, 1.0)  # noqa: S311
        connection.retire_at = monotonic() + age_s

    def tick(self, now: float) -> None:
        """Close what grew old, and find out every few seconds where the name leads."""
        self._idle.sweep(now)
        if now >= self._resolve_at:
            self._resolve_at = now + self._settings.resolve_s
            self._keep(self._loop.create_task(self._follow_name()))

    def lost(self, connection: Connection, call: Call | None) -> None:
        """Forget a connection; `call` is the one it took down with it."""
        self.open -= 1
        self._idle.discard(connection)
        self._connections.discard(connection)
        if self._attempts < len(self._waiting):
            self._open_one()
        if call is not None and not call.done:
            # The server may have restarted: what was open before would break as well.
            self._idle.close()
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
        self._idle.close()

    def _open_one(self) -> None:
        if self.open >= self._connections_max:
            return
        self.open += 1
        self._attempts += 1
        self._keep(self._loop.create_task(self._connect()))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await self._loop.create_connection(
                    lambda: Connection(self),
                    self._host,
                    self._port,
                    ssl=_tls() if self._scheme == "https" else None,
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

    async def _follow_name(self) -> None:
        """Retire the connections to addresses that the name no longer has."""
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                found = await self._loop.getaddrinfo(self._host, self._port, type=SOCK_STREAM)
        except (OSError, UnicodeError):
            # A resolver that is away says nothing of where the server is.
            return
        addresses = {str(address[0]) for *_, address in found}
        moved = [each for each in self._connections if each.peer not in addresses]
        for connection in moved:
            connection.retire_at = float("-inf")
        if moved:
            log.info("endpoint.moved: %s is at %s", self.address, ", ".join(sorted(addresses)))
            self._idle.sweep(monotonic())

    def _fail_waiting(self, reason: str) -> None:
        # Nobody who waits here can be served while the server cannot be reached.
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            if not call.done:
                call.broken(reason, sent=False)


def take_apart(address: str) -> tuple[str, str, int]:
    """Return scheme, host and port of an endpoint's address. Raises ValueError."""
    scheme, separator, bare = address.rpartition("://")
    scheme = scheme if separator else "http"
    if scheme not in PORTS:
        raise ValueError(f"{address}: Triton is called by http:// or https://")
    bare = bare.rstrip("/")
    host, _, port = bare.rpartition(":")
    return (scheme, host.strip("[]"), int(port)) if host else (scheme, bare, PORTS[scheme])


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


@cache
def _tls() -> ssl.SSLContext:
    """Return how servers are verified: by the system's authorities, or those in SSL_CERT_FILE."""
    return ssl.create_default_context()
