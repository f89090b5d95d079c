"""HTTP/1.1 for one client connection: parses bytes into exchanges, and sends answers in order.

It guarantees three things: answers are sent in the order of their requests, in whatever order the
application finishes them; everything that a client may send or leave unread is bounded; malformed
bytes end this connection with an answer and affect no other. It must not block, and it does not
know what is served: the application is a callable that takes an `Exchange`.
"""

from __future__ import annotations

from asyncio import Protocol, Transport, get_running_loop
from collections import deque
from typing import cast

import httptools

from dataplane import compression, http_refusals
from dataplane.errors import Refusal, unavailable
from dataplane.exchange import Exchange
from dataplane.http_listener import Server
from dataplane.http_upgrades import body_parser

# Headers with which an HTTP/1.0 request can ask to keep the connection.
_SAY_KEEP_ALIVE = frozenset((b"connection", b"proxy-connection"))
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# Pieces of a body that are kept unjoined.
_PIECES_MAX = 256
# Bytes of a read that are parsed before other connections get a turn: they may hold a piece in
# every five bytes, and a request in every fifty.
_SLICE_BYTES = 16 * 1024
# Seconds for which a refused connection may go on sending before it is closed, so that its client
# can read the answer instead of getting a reset.
_LINGER_S = 2
# A client that stops sending has either closed or half-closed, which look alike. Its requests that
# are still queued after this many seconds count as abandoned.
_GRACE_S = 0.1


class HttpConnection(Protocol):
    """The protocol of one connection; httptools calls the `on_…` methods."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_current",
        "_deaf",
        "_head_bytes",
        "_head_bytes_max",
        "_headers",
        "_held",
        "_held_bytes",
        "_in_head",
        "_in_line",
        "_parser",
        "_pending",
        "_read_paused",
        "_refused",
        "_releasing",
        "_rest",
        "_since_s",
        "_unread",
        "_wants_continue",
        "_write_paused",
        "cluster",
        "server",
        "transport",
    )

    def __init__(self, server: Server) -> None:
        # The state that all connections share.
        self.server = server
        # None before the connection is made and after it is lost.
        self.transport: Transport | None = None
        # The incremental parser, which calls back into this object.
        self._parser = httptools.HttpRequestParser(self)
        # Requests that are not answered, or whose answer must wait for an earlier one.
        self._pending: deque[Exchange] = deque()
        # Requests that arrived together with the last of those: parsed, but not started.
        self._held: deque[Exchange] = deque()
        # Whether a caller up the stack is starting held requests.
        self._releasing = False
        # The request that is being read.
        self._current: Exchange | None = None
        # The pieces of its body so far.
        self._body: list[bytes | bytearray] = []
        # The sum of their lengths.
        self._body_bytes = 0
        # The bytes of larger bodies on this connection whose requests are unanswered.
        self._held_bytes = 0
        # The length of its head so far, as far as known.
        self._head_bytes = 0
        # Its maximum; a copy, because each header needs it.
        self._head_bytes_max = server.limits.head_bytes_max
        # Bytes that were read and wait for the connection's turn to be parsed.
        self._rest = b""
        # The target of parsed headers.
        self._headers: dict[bytes, bytes] = {}
        # True between the first byte of a request and the end of its head.
        self._in_head = False
        # The client waits for `100 Continue` to send the body.
        self._wants_continue = False
        # Set when nothing more is read: after a refusal, or the last request.
        self._deaf = False
        # The bytes were refused: the client may still be sending when it is answered.
        self._refused = False
        # The parser does not read the body of the current request, which asks for an upgrade.
        self._unread = False
        # When the present phase (idle, head, body, blocked write) began, on the server's clock.
        self._since_s = 0
        # The client does not read its answers, so its requests are not read.
        self._write_paused = False
        # A large request waits until other connections were read.
        self._in_line = False
        # Whether reading of the transport is paused.
        self._read_paused = False
        # The cluster of the client's address, once a request without a unit needs it.
        self.cluster: int | None = None

    # --- asyncio calls these -------------------------------------------------------------------

    def connection_made(self, transport: object) -> None:
        self.transport = cast(Transport, transport)
        self._since_s = self.server.now_s
        if len(self.server.connections) >= self.server.connections_max or self.server.closing:
            self.transport.abort()
        self.server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.lost(self)
        self.transport = None
        self._abandon()
        self.server.held_bytes -= self._held_bytes
        self._held_bytes = 0
        self._pending.clear()
        self._held.clear()
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._rest = b""
            self._take_turns()
            return
        if len(data) > _SLICE_BYTES and len(data) > self._missing_bytes():
            self._receive_slices(data)
            return
        before, head_bytes, body_bytes = self._current, self._head_bytes, self._body_bytes
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._unread and self._current is not None:
                self._unread = False
                method = self._parser.get_method()
                self._parser = body_parser(self, self._current.headers, method)
                self.data_received(data[upgrade.args[0] :])
                return
            # The request itself was delivered, and the connection closes after its answer.
        except httptools.HttpParserError as error:
            if not self._deaf:
                self._refuse(http_refusals.refusal_of(error))
            return
        current = self._current
        if current is not None and current is before and self._body_bytes == body_bytes:
            # The parser reports header lines and trailers when complete, and chunk heads not at
            # all, so their pieces are counted here.
            if self._head_bytes == head_bytes:
                self._head_bytes += len(data)
            if self._head_bytes > self.server.limits.head_bytes_max:
                self._refuse(http_refusals.head_too_large())
        if self._pending or self._held or self._read_paused or self._write_paused:
            self._balance()

    def eof_received(self) -> bool:
        """Return True (stay open for writing) if a half-closed client waits for answers."""
        if self._current is not None and not self._deaf:
            self._refuse(Refusal(400, "malformed_http", "the request is incomplete"))
        self._deaf = True
        owed = self._held or self._pending
        if owed:
            owed[-1].keep_alive = False
            if any(exchange.job is not None for exchange in self._pending):
                get_running_loop().call_later(_GRACE_S, self._abandon)
            return True
        return False

    def _abandon(self) -> None:
        for exchange in self._pending:
            if exchange.job is not None:
                exchange.job.abandoned()

    def pause_writing(self) -> None:
        self._write_paused = True
        self._since_s = self.server.now_s
        self._balance()

    def resume_writing(self) -> None:
        self._write_paused = False
        self._since_s = self.server.now_s
        self._balance()

    # --- httptools calls these -----------------------------------------------------------------

    def on_message_begin(self) -> None:
        current = self._current = Exchange(self)
        self._headers = current.headers
        self._head_bytes = 0
        self._in_head = True
        self._since_s = self.server.now_s

    def on_url(self, url: bytes) -> None:
        assert self._current is not None
        self._current.target += url
        if len(self._current.target) > self.server.limits.head_bytes_max:
            raise http_refusals.head_too_large()

    def on_header(self, name: bytes, value: bytes) -> None:
        headers = self._headers
        size = self._head_bytes = self._head_bytes + len(name) + len(value) + 4
        if size > self._head_bytes_max:
            raise http_refusals.head_too_large()
        name = name.lower()
        if name in headers:
            http_refusals.refuse_repeated(name)
        headers[name] = value

    def on_headers_complete(self) -> None:
        self._in_head = False
        current = self._current
        assert current is not None
        headers = current.headers
        if len(headers) > self.server.limits.headers_max:
            raise http_refusals.head_too_large()
        if not self._parser.should_keep_alive() or not _SAY_KEEP_ALIVE.isdisjoint(headers):
            # All others are HTTP/1.1; get_http_version is slow.
            current.legacy = http_refusals.is_legacy(self._parser.get_http_version())
        if b"host" not in headers and not current.legacy:
            raise Refusal(400, "malformed_http", "an HTTP/1.1 request must have a Host header")
        length = headers.get(b"content-length")
        if length is not None and int(length) > self.server.limits.body_bytes_max:
            raise http_refusals.body_too_large(self.server.limits)
        coding = headers.get(b"transfer-encoding")
        if coding is not None and current.legacy:
            # A proxy that forwarded it may not have understood it.
            raise Refusal(400, "malformed_http", "HTTP/1.0 does not support transfer codings")
        if coding is not None and coding.lower() != b"chunked":
            raise Refusal(501, "unknown_coding", "unknown transfer coding; expected chunked")
        if coding is not None:
            # Trailers may follow: they are ignored.
            self._headers = {}
        if b"expect" in headers and not current.legacy:
            self._expect(headers[b"expect"])
        if b"upgrade" in headers and self._parser.should_upgrade():
            has_body = coding is not None or (length is not None and int(length) > 0)
            self._unread = has_body and self._parser.get_method() != b"CONNECT"

    def on_body(self, data: bytes) -> None:
        self._body_bytes += len(data)
        self._body.append(data)
        if self._body_bytes > self.server.small_bytes_max:
            self._hold()
        if len(self._body) > _PIECES_MAX:
            self._join()

    def on_message_complete(self) -> None:
        current = self._current
        assert current is not None
        if self._deaf or self._unread:
            return  # It follows the last request of the connection, or is not complete.
        parser = self._parser
        current.method = parser.get_method()
        if not parser.should_keep_alive() or parser.should_upgrade():
            current.keep_alive = False
            self._deaf = True
        body = self._body
        if body:
            whole = body[0] if len(body) == 1 else b"".join(body)
            current.body = whole if type(whole) is bytes else bytes(whole)
            self._body = []
            self._body_bytes = 0
        self._current = None
        self._wants_continue = False
        self._since_s = self.server.now_s
        busy = len(self._pending) >= self.server.limits.pipeline_max
        if busy or self._write_paused or self._held:
            self._held.append(current)
        else:
            self._begin(current)

    # --- the rest ------------------------------------------------------------------------------

    def answered(self, exchange: Exchange) -> None:
        """Send the answer of `exchange`, and those after it, when it is their turn."""
        pending = self._pending
        transport = self.transport
        if transport is None or not pending or pending[0] is not exchange:
            return
        while pending and (answer := pending[0].answer) is not None:
            done = pending.popleft()
            if done.held:
                self._release_bytes(done)
            transport.write(answer)
            if not done.keep_alive:
                # A stop closes the connection before later requests: their client gets no answer.
                self._abandon()
                pending.clear()
                self._held.clear()
                self._finish(transport)
                return
        if self._wants_continue and not pending:
            self._allow_body()
        if not pending:
            self._since_s = self.server.now_s
        if self._read_paused or self._held:
            self._balance()

    def read_on(self) -> None:
        """Resume reading: it is this connection's turn."""
        self._in_line = False
        self._balance()

    def close_when_idle(self) -> None:
        """Close at once, unless a request is unanswered or partly read."""
        busy = self._pending or self._held or self._rest or self._current is not None
        if self.transport is not None and not busy:
            self.transport.close()

    def check_time(self, now_s: int) -> None:
        """Close or refuse a connection that exceeds the time limit of its present phase."""
        limits = self.server.limits
        waited_s = now_s - self._since_s
        if self.transport is None:
            return
        if self._write_paused:
            if waited_s > limits.write_timeout_s:
                self.transport.abort()
        elif self._pending:
            return
        elif self._deaf:
            if waited_s > _LINGER_S:
                self.transport.abort()
        elif self._current is None:
            if waited_s > limits.idle_timeout_s:
                self.transport.close()
        elif waited_s > (limits.head_timeout_s if self._in_head else limits.body_timeout_s):
            self._refuse(Refusal(408, "request_timeout", "the request took too long to arrive"))

    def _receive_slices(self, data: bytes) -> None:
        """Parse the beginning of a long read now, and the rest in turn.

        The part that belongs to a body of known length is a single piece and is parsed now.
        """
        end = max(_SLICE_BYTES, self._missing_bytes())
        self.data_received(data[:end])
        missing_bytes = self._missing_bytes()
        if missing_bytes:
            self.data_received(data[end : end + missing_bytes])
        self._rest = data[end + missing_bytes :]
        if self._rest:
            self._take_turns()

    def _missing_bytes(self) -> int:
        """Return the missing bytes of the body that is being read, or 0 if unknown."""
        if self._current is None or self._in_head:
            return 0
        length = self._current.headers.get(b"content-length")
        return 0 if length is None else int(length) - self._body_bytes

    def _expect(self, value: bytes) -> None:
        if value.lower() != b"100-continue":
            raise Refusal(417, "expectation_failed", "unknown expectation; expected 100-continue")
        if self._pending:
            self._wants_continue = True
        else:
            self._allow_body()

    def _begin(self, exchange: Exchange) -> None:
        self._pending.append(exchange)
        if exchange.ended:
            self.answered(exchange)  # It was refused while it was read.
            return
        encoding = exchange.headers.get(b"content-encoding")
        if encoding is None:
            self.server.application(exchange)
            return

        bytes_max = self.server.limits.body_bytes_max
        try:
            exchange.body, exchange.coding = compression.unpack(exchange.body, encoding, bytes_max)
        except Refusal as refusal:
            exchange.refuse(refusal)
        else:
            self.server.application(exchange)

    def _hold(self) -> None:
        """Count the body that is being read in the budgets. Raises Refusal beyond them."""
        server, current = self.server, self._current
        assert current is not None
        limits = server.limits
        if self._body_bytes > limits.body_bytes_max:
            raise http_refusals.body_too_large(limits)
        more = self._body_bytes - current.held
        if server.held_bytes + more > limits.bodies_bytes_max:
            message = f"large requests may have at most {limits.bodies_bytes_max} bytes in total"
            raise unavailable("too_many_bytes", message)
        self._take_turns()
        current.held += more
        self._held_bytes += more
        server.held_bytes += more

    def _join(self) -> None:
        """Join the pieces: a piece of a few bytes takes fifty."""
        whole = self._body[0]
        if not isinstance(whole, bytearray):
            whole = bytearray(whole)
        whole += b"".join(self._body[1:])
        self._body = [whole]

    def _take_turns(self) -> None:
        """Read on after other connections: uvloop reads megabytes at once from one client."""
        transport = self.transport
        if self._in_line or transport is None:
            return
        self._in_line = True
        self.server.read_in_turn(self)
        if not self._read_paused:
            self._read_paused = True
            transport.pause_reading()

    def _release_bytes(self, exchange: Exchange) -> None:
        self._held_bytes -= exchange.held
        self.server.held_bytes -= exchange.held
        exchange.held = 0

    def _release(self) -> None:
        """Start held requests, up to the limit of requests in progress."""
        if self._releasing:
            return
        self._releasing = True
        held, pending = self._held, self._pending
        pipeline_max = self.server.limits.pipeline_max
        try:
            while held and not self._write_paused and len(pending) < pipeline_max:
                self._begin(held.popleft())
        finally:
            self._releasing = False

    def _allow_body(self) -> None:
        self._wants_continue = False
        if self.transport is not None:
            self.transport.write(_CONTINUE)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer the bytes that were just read with an error, after the pending answers."""
        exchange = Exchange(self)
        exchange.keep_alive = False
        if self._current is not None:
            self._release_bytes(self._current)
        self._current = None
        self._body = []
        self._deaf = True
        self._refused = True
        (self._held or self._pending).append(exchange)
        exchange.refuse(refusal)

    def _finish(self, transport: Transport) -> None:
        """Close; a client that is still sending gets time to read its answer before a reset."""
        self._deaf = True
        self._since_s = self.server.now_s
        if self._refused and transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()

    def _balance(self) -> None:
        """Read only while the client reads its answers and is within its limits."""
        if self._held:
            self._release()
        transport = self.transport
        if transport is None:
            return
        limits = self.server.limits
        full = (
            self._write_paused
            or self._in_line
            or len(self._pending) >= limits.pipeline_max
            or self._held_bytes - self._body_bytes > limits.connection_bytes_max
        )
        if full and not self._read_paused:
            self._read_paused = True
            transport.pause_reading()
        elif not full and self._read_paused:
            if self._rest:
                rest, self._rest = self._rest, b""
                self.data_received(rest)
            else:
                self._read_paused = False
                transport.resume_reading()
