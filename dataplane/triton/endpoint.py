"""The pool of connections to one Triton server.

A host name is resolved for each new connection, and again every few seconds: connections to
addresses that it no longer has are retired once their calls have ended. No connection is used
beyond its maximum age, so that a load balancer that hides addresses can redistribute connections.
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
    """Sends calls over connections that it opens on demand, up to a limit."""

    def __init__(
        self,
        address: str,
        loop: asyncio.AbstractEventLoop,
        connections_max: int,
        settings: Settings,
    ) -> None:
        # The address in the routing table: host:port, optionally with a scheme.
        self.address = address
        # Its parts.
        self._scheme, self._host, self._port = split_address(address)
        # Opens connections.
        self._loop = loop
        # Maximum connections.
        self._connections_max = connections_max
        # Ages and intervals.
        self._settings = settings
        # Idle connections.
        self._idle = Idle(settings.connection_idle_s)
        # All open connections, to be retired when the name no longer has their address.
        self._connections: set[Connection] = set()
        # When the name is resolved again, monotonic; never for an IP address.
        self._resolve_at = float("inf") if _is_address(self._host) else float("-inf")
        # The number of connections, including idle ones and those being opened.
        self.open = 0
        # Calls that wait for a connection; bounded by the batches in flight of all versions.
        self._waiting: deque[Call] = deque()
        # Background tasks, referenced so that they are not garbage collected.
        self._tasks: set[asyncio.Task[None]] = set()
        # Connections being opened: at most as many as calls that wait.
        self._attempts = 0
        # Whether it left the table: calls in flight end, and no connection is kept.
        self._closed = False
        # Calls that were sent here, or wait to be, and have not ended.
        self.in_flight = 0
        # Latency, and whether it is ejected.
        self.health = Health(settings)
        # The clusters in which it has siblings.
        self.groups: WeakSet[Group] = WeakSet()
        # Calls that came here as a retry or as a hedge.
        self.retries = 0
        self.hedges = 0
        # Calls here that were not retried or hedged because the budget was spent.
        self.exhausted = 0

    def __repr__(self) -> str:
        return f"<Endpoint {self.address}: {len(self._idle)} idle of {self.open} open>"

    def start(self, call: Call) -> None:
        """Send `call` on an idle connection, on a new one, or when one becomes free."""
        call.endpoint = self
        now = monotonic()
        if not self.in_flight:
            self.health.call_started(now)
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
                # Waiting for a connection is not part of the latency.
                call.sent_at = now
                connection.send(call, now)
                return
        if self._closed:
            connection.close()
        else:
            self._idle.put(connection, now)

    def silent(self, connection: Connection) -> None:
        """Record that a call on the connection got no response in time."""
        self._idle.silent(connection)

    def opened(self, connection: Connection) -> None:
        """Record a new connection, and set the end of its use."""
        self._connections.add(connection)
        # Connections that were opened together must not end together.
        age_s = self._settings.connection_age_s * uniform(0.8, 1.0)  # noqa: S311
        connection.retire_at = monotonic() + age_s

    def tick(self, now: float) -> None:
        """Close old connections, and resolve the name every few seconds."""
        self._idle.sweep(now)
        if now >= self._resolve_at:
            self._resolve_at = now + self._settings.resolve_s
            self._keep(self._loop.create_task(self._follow_name()))

    def lost(self, connection: Connection, call: Call | None) -> None:
        """Forget a closed connection; `call` is the one that was on it."""
        self.open -= 1
        self._idle.discard(connection)
        self._connections.discard(connection)
        if self._attempts < len(self._waiting):
            self._open_one()
        if call is not None and not call.done:
            # The server may have restarted: other open connections would break as well.
            self._idle.close()
            call.broken(f"{self.address} closed the connection", sent=True)

    def warm(self, connections: int) -> None:
        """Open connections until there are `connections` of them."""
        for _ in range(min(connections, self._connections_max) - self.open):
            self._open_one()

    def close(self) -> None:
        """Close idle connections now, and the others when their calls have ended.

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
            # ValueError and OverflowError are raised for invalid names or ports.
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
                results = await self._loop.getaddrinfo(self._host, self._port, type=SOCK_STREAM)
        except (OSError, UnicodeError):
            # A resolver that fails says nothing about the addresses of the server.
            return
        addresses = {str(address[0]) for *_, address in results}
        moved = [each for each in self._connections if each.peer not in addresses]
        for connection in moved:
            connection.retire_at = float("-inf")
        if moved:
            log.info("endpoint.moved: %s is at %s", self.address, ", ".join(sorted(addresses)))
            self._idle.sweep(monotonic())

    def _fail_waiting(self, reason: str) -> None:
        # No waiting call can be sent while the server cannot be reached.
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            if not call.done:
                call.broken(reason, sent=False)


def split_address(address: str) -> tuple[str, str, int]:
    """Return scheme, host and port of an endpoint's address. Raises ValueError."""
    scheme, separator, bare = address.rpartition("://")
    scheme = scheme if separator else "http"
    if scheme not in PORTS:
        raise ValueError(f"{address}: the scheme must be http:// or https://")
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
    """Return the context that verifies servers by the system's authorities, or by SSL_CERT_FILE."""
    return ssl.create_default_context()
