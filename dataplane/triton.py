"""Calls to Triton: HTTP/1.1 keep-alive connections of our own, on asyncio and httptools.

One call is one request on one connection; no task and no future is made for it, its owner is
called back. Every call ends once, with a reply or a `TritonError`, within its deadline. A call that
met a dead connection is tried once more, on another endpoint where there is one. All that the
network or Triton can do wrong becomes a `TritonError` here and nowhere else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from enum import Enum
from random import choice
from typing import cast

import httptools
import orjson

REPLY_BYTES_MAX = 256 * 1024 * 1024
CONNECT_TIMEOUT_S = 1.0


class Fault(Enum):
    """What kind of failure a call met."""

    REFUSED = "refused"  # Triton found fault with the request.
    FAILED = "failed"  # The version answered with an error.
    DEAD = "dead"  # The version is not there, or its process is gone.
    UNREACHABLE = "unreachable"  # No endpoint could be talked to.
    TIMEOUT = "timeout"  # The deadline passed.

    @property
    def is_dead(self) -> bool:
        """True when the version did not answer at all, so that any row would fare the same."""
        return self in (Fault.DEAD, Fault.UNREACHABLE, Fault.TIMEOUT)


class TritonError(Exception):
    """A call that brought no answer; `fault` says what kind of failure it was."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        # What may be done about it depends on this.
        self.fault = fault
        # Triton's own message, or ours.
        self.message = message


class Reply:
    """A response: its status, its body, and how much of the body is JSON."""

    __slots__ = ("body", "header_length", "status")

    def __init__(self, status: int, header_length: int | None, body: bytes) -> None:
        # The HTTP status.
        self.status = status
        # How much of the body is JSON; None for all.
        self.header_length = header_length
        # The whole body.
        self.body = body

    def error(self) -> TritonError:
        """Return what an answer other than 200 means."""
        try:
            message = str(orjson.loads(self.body)["error"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            message = f"HTTP {self.status}"
        if "Stub process" in message or "is not healthy" in message:
            # A crashed Python backend is never restarted by Triton and still reports READY.
            return TritonError(Fault.DEAD, message)
        if self.status == 404 or self.status == 503:
            return TritonError(Fault.DEAD, message)
        fault = Fault.REFUSED if 400 <= self.status < 500 else Fault.FAILED
        return TritonError(fault, message)


OnDone = Callable[[Reply | TritonError], None]


class Call:
    """One request under way; `finish` reports its end exactly once."""

    __slots__ = (
        "_on_done",
        "_timer",
        "addresses",
        "connection",
        "done",
        "endpoint",
        "request",
        "retried",
    )

    def __init__(self, addresses: tuple[str, ...], request: bytes, on_done: OnDone) -> None:
        # The endpoints that may answer it.
        self.addresses = addresses
        # Head and body as they go over the wire.
        self.request = request
        # Called with the end.
        self._on_done = on_done
        # The deadline.
        self._timer: asyncio.TimerHandle | None = None
        # The connection that carries it, None while it waits for one.
        self.connection: Connection | None = None
        # Where it was sent last.
        self.endpoint = ""
        # It was already given its second chance.
        self.retried = False
        # The end was reported.
        self.done = False

    def arm(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        """Start the deadline."""
        self._timer = loop.call_later(timeout_s, self._expire)

    def finish(self, result: Reply | TritonError) -> None:
        """Report the end. Later calls do nothing."""
        if self.done:
            return
        self.done = True
        self.connection = None
        if self._timer is not None:
            self._timer.cancel()
        self._on_done(result)

    def _expire(self) -> None:
        connection = self.connection
        self.finish(TritonError(Fault.TIMEOUT, "no answer before the deadline"))
        if connection is not None:
            # The answer may still come; it must not be taken for that of another call.
            connection.abort()


class Connection(asyncio.Protocol):
    """One keep-alive connection; it carries one call at a time."""

    __slots__ = (
        "_body",
        "_bytes",
        "_endpoint",
        "_header_length",
        "_parser",
        "call",
        "transport",
    )

    def __init__(self, endpoint: Endpoint) -> None:
        # The pool it belongs to.
        self._endpoint = endpoint
        # None before it is made and after it is lost.
        self.transport: asyncio.Transport | None = None
        # The call whose answer is due.
        self.call: Call | None = None
        # The incremental parser, which calls back into this object.
        self._parser = httptools.HttpResponseParser(self)
        # The answer so far.
        self._body: list[bytes] = []
        # The length of the body so far.
        self._bytes = 0
        # From the header of that name.
        self._header_length: int | None = None

    def send(self, call: Call) -> None:
        """Write the request of `call`; its answer ends it."""
        assert self.transport is not None
        self.call = call
        call.connection = self
        self.transport.write(call.request)

    def abort(self) -> None:
        """Drop the connection together with whatever is under way on it."""
        self.call = None
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        call, self.call = self.call, None
        self._endpoint.lost(self, call)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            call, self.call = self.call, None
            self.abort()
            if call is not None:
                call.finish(TritonError(Fault.FAILED, f"malformed answer: {error}"))

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == 31 and name.lower() == b"inference-header-content-length":
            self._header_length = int(value)

    def on_body(self, data: bytes) -> None:
        self._bytes += len(data)
        if self._bytes > REPLY_BYTES_MAX:
            raise ValueError(f"an answer of more than {REPLY_BYTES_MAX} bytes")
        self._body.append(data)

    def on_message_complete(self) -> None:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        reply = Reply(self._parser.get_status_code(), self._header_length, body)
        keep = self._parser.should_keep_alive()
        self._body = []
        self._bytes = 0
        self._header_length = None
        call, self.call = self.call, None
        if call is None or not keep:
            # An answer that nobody asked for: whatever comes next cannot be trusted.
            self.abort()
        else:
            self._endpoint.release(self)
        if call is not None:
            call.finish(reply)


class Endpoint:
    """The pool of connections to one Triton server."""

    def __init__(
        self,
        address: str,
        loop: asyncio.AbstractEventLoop,
        connections_max: int,
        on_broken: Callable[[Call, str], None],
    ) -> None:
        # As the routing table names it: host:port, a scheme before it is allowed.
        self.address = address
        # The same, taken apart.
        self._host, self._port = _host_and_port(address)
        # Opens connections and runs deadlines.
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
        # Called with a call whose connection failed before its answer was whole, and the reason.
        self._on_broken = on_broken

    def __repr__(self) -> str:
        return f"<Endpoint {self.address}: {len(self._idle)} idle of {self.open} open>"

    def start(self, call: Call) -> None:
        """Send `call` on a free connection, on a new one, or when one becomes free."""
        call.endpoint = self.address
        while self._idle:
            connection = self._idle.pop()
            if connection.transport is not None and not connection.transport.is_closing():
                connection.send(call)
                return
        self._waiting.append(call)
        self._open_if_needed()

    def release(self, connection: Connection) -> None:
        """Take back a connection whose call was answered."""
        waiting = self._waiting
        while waiting:
            call = waiting.popleft()
            if not call.done:
                connection.send(call)
                return
        self._idle.append(connection)

    def lost(self, connection: Connection, call: Call | None) -> None:
        """Forget a connection; `call` is the one it took down with it."""
        self.open -= 1
        if connection in self._idle:
            self._idle.remove(connection)
        self._open_if_needed()
        if call is not None and not call.done:
            self._on_broken(call, f"{self.address} closed the connection")

    def close(self) -> None:
        """Close the idle connections, so that Triton need not wait for them when it stops."""
        while self._idle:
            self._idle.pop().abort()

    def _open_if_needed(self) -> None:
        if self.open >= self._connections_max or self._attempts >= len(self._waiting):
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
        except OSError as error:
            self._attempts -= 1
            self.open -= 1
            reason = str(error) or "no connection in time"
            self._fail_waiting(f"{self.address}: {reason}")
            return
        self._attempts -= 1
        self.release(connection)

    def _fail_waiting(self, reason: str) -> None:
        # Nobody who waits here can be served while the server cannot be reached.
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            if not call.done:
                self._on_broken(call, reason)


class Triton:
    """Sends calls to the endpoints of clusters, a pool for each endpoint."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connections_max: int = 64) -> None:
        # Opens connections and runs deadlines.
        self._loop = loop
        # Connections to one endpoint at most.
        self._connections_max = connections_max
        # Pools by address; those that no cluster names any more are closed by `keep_only`.
        self._endpoints: dict[str, Endpoint] = {}

    def post(
        self, addresses: tuple[str, ...], request: bytes, timeout_s: float, on_done: OnDone
    ) -> None:
        """Send `request` to one of `addresses`; `on_done` gets the reply or a TritonError."""
        call = Call(addresses, request, on_done)
        call.arm(self._loop, timeout_s)
        address = addresses[0] if len(addresses) == 1 else choice(addresses)  # noqa: S311
        self._endpoint(address).start(call)

    async def get(self, address: str, path: str, timeout_s: float) -> Reply:
        """Fetch `path` from one endpoint. Raises TritonError."""
        done: asyncio.Future[Reply | TritonError] = self._loop.create_future()
        request = b"GET %b HTTP/1.1\r\nhost: %b\r\n\r\n" % (path.encode(), address.encode())
        self.post((address,), request, timeout_s, _resolver(done))
        result = await done
        if isinstance(result, TritonError):
            raise result
        return result

    def keep_only(self, addresses: set[str]) -> None:
        """Close the pools of endpoints that no cluster names any more."""
        for address in self._endpoints.keys() - addresses:
            self._endpoints.pop(address).close()

    def close(self) -> None:
        """Close every idle connection."""
        self.keep_only(set())

    def _endpoint(self, address: str) -> Endpoint:
        endpoint = self._endpoints.get(address)
        if endpoint is None:
            endpoint = Endpoint(address, self._loop, self._connections_max, self._retry)
            self._endpoints[address] = endpoint
        return endpoint

    def _retry(self, call: Call, reason: str) -> None:
        """Give a call whose connection broke its one more chance, elsewhere where there is one."""
        if call.retried:
            call.finish(TritonError(Fault.UNREACHABLE, reason))
            return
        call.retried = True
        others = [address for address in call.addresses if address != call.endpoint]
        self._endpoint(choice(others or call.addresses)).start(call)  # noqa: S311


def _resolver(done: asyncio.Future[Reply | TritonError]) -> OnDone:
    def resolve(result: Reply | TritonError) -> None:
        if not done.done():
            done.set_result(result)

    return resolve


def _host_and_port(address: str) -> tuple[str, int]:
    bare = address.removeprefix("http://").rstrip("/")
    host, _, port = bare.rpartition(":")
    return (host.strip("[]"), int(port)) if host else (bare, 8000)
