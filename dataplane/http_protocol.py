"""HTTP/1.1 for one client connection: bytes in, exchanges out, answers back in order.

It keeps three promises: answers leave in the order of their requests, whatever order the
application finishes them in; whatever a client may send or not read is bounded; a fault in the
bytes ends this connection with an answer and touches no other. It must not block, and it knows
nothing of what is being served: the application is a callable that takes an `Exchange`.
"""

from __future__ import annotations

from asyncio import Protocol, Transport, get_running_loop
from collections import deque
from typing import cast

import httptools

from dataplane import compression, http_refusals
from dataplane.errors import Refusal, unavailable
from dataplane.exchange import Exchange
from dataplane.http_server import Server
from dataplane.http_upgrades import body_parser

# By either of these an older request can ask for the connection to be kept.
_SAY_KEEP_ALIVE = frozenset((b"connection", b"proxy-connection"))
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# Pieces of a body that are kept as they came.
_PIECES_MAX = 256
# How much of a read is parsed before others have their turn: it may hold a piece in every five
# bytes, and a request in every fifty.
_SLICE_BYTES = 16 * 1024
# How long a connection that was refused may go on sending before it is cut, so that its client
# gets to read the answer instead of a reset.
_LINGER_S = 2
# A client that sends no more has either closed or half-closed: nobody can tell. What it asked for
# and has not left the queue after this is taken for abandoned.
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
        # What all connections share.
        self.server = server
        # None before the connection is made and after it is lost.
        self.transport: Transport | None = None
        # The incremental parser, which calls back into this object.
        self._parser = httptools.HttpRequestParser(self)
        # Requests that are not answered yet, or whose answer must wait for an earlier one.
        self._pending: deque[Exchange] = deque()
        # Requests that came in one piece with the last of those: read, but not yet begun.
        self._held: deque[Exchange] = deque()
        # Held requests are being begun further up the stack.
        self._releasing = False
        # The request that is being read.
        self._current: Exchange | None = None
        # The pieces of its body so far.
        self._body: list[bytes | bytearray] = []
        # The sum of their lengths.
        self._body_bytes = 0
        # The bytes of larger bodies that came here and are not answered.
        self._held_bytes = 0
        # The length of its head so far, as far as it is known.
        self._head_bytes = 0
        # What it may be; at hand, since each header asks.
        self._head_bytes_max = server.limits.head_bytes_max
        # What was read and waits for the connection's turn to be parsed.
        self._rest = b""
        # Where headers go.
        self._headers: dict[bytes, bytes] = {}
        # True between the first byte of a request and the end of its head.
        self._in_head = False
        # The client waits for leave to send the body.
        self._wants_continue = False
        # Set once nothing more will be read: after a refusal, or the last request.
        self._deaf = False
        # The bytes were refused, so the client may still be sending when it is answered.
        self._refused = False
        # The parser leaves the body of the current request unread, since it asks for an upgrade.
        self._unread = False
        # When the present phase (idle, head, body, blocked write) began, on the server's clock.
        self._since_s = 0
        # The client does not read its answers, so we do not read its requests.
        self._write_paused = False
        # It sends many bytes, and waits until others were read.
        self._in_line = False
        # The transport is not reading at present.
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
            # The parser shows a header line or a trailer when it is whole, and of a chunk's head
            # nothing at all, so their pieces are counted here.
            if self._head_bytes == head_bytes:
                self._head_bytes += len(data)
            if self._head_bytes > self.server.limits.head_bytes_max:
                self._refuse(http_refusals.head_too_large())
        if self._pending or self._held or self._read_paused or self._write_paused:
            self._balance()

    def eof_received(self) -> bool:
        """Return True (stay open for writing) while answers are owed to a half-closed client."""
        if self._current is not None and not self._deaf:
            self._refuse(Refusal(400, "malformed_http", "the request ends before its end"))
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
            # Any other one is of HTTP/1.1, and the parser is slow to say so.
            current.legacy = http_refusals.is_legacy(self._parser.get_http_version())
        if b"host" not in headers and not current.legacy:
            raise Refusal(400, "malformed_http", "an HTTP/1.1 request needs a Host header")
        length = headers.get(b"content-length")
        if length is not None and int(length) > self.server.limits.body_bytes_max:
            raise http_refusals.body_too_large(self.server.limits)
        coding = headers.get(b"transfer-encoding")
        if coding is not None and current.legacy:
            # Whoever passed it on may not have known what it means.
            raise Refusal(400, "malformed_http", "an HTTP/1.0 request has no transfer coding")
        if coding is not None and coding.lower() != b"chunked":
            raise Refusal(501, "unknown_coding", "the only transfer coding known is chunked")
        if coding is not None:
            # Trailers may follow: nothing of ours is ever in one.
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
            return  # It came in one piece with a request that was to be the last, or is not whole.
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
        """Send the answer of `exchange`, and those behind it, when it is their turn."""
        pending = self._pending
        transport = self.transport
        if transport is None or not pending or pending[0] is not exchange:
            return
        while pending and (answer := pending[0].answer) is not None:
            done = pending.popleft()
            if done.held:
                self._let_go(done)
            transport.write(answer)
            if not done.keep_alive:
                # A stop closes before what was asked behind this: its client is told nothing.
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
        """Read again: its turn has come."""
        self._in_line = False
        self._balance()

    def close_when_idle(self) -> None:
        """Close at once unless an answer is owed or a request is half read."""
        busy = self._pending or self._held or self._current is not None
        if self.transport is not None and not busy:
            self.transport.close()

    def check_time(self, now_s: int) -> None:
        """Cut or refuse a connection that stayed in its present phase beyond the limit."""
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

        What belongs to a body of known length is a single piece and parsed now.
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
        """Return what is missing of the body that is being read, or 0 where nobody knows."""
        if self._current is None or self._in_head:
            return 0
        length = self._current.headers.get(b"content-length")
        return 0 if length is None else int(length) - self._body_bytes

    def _expect(self, value: bytes) -> None:
        if value.lower() != b"100-continue":
            raise Refusal(417, "expectation_failed", "the only expectation known is 100-continue")
        if self._pending:
            self._wants_continue = True
        else:
            self._allow_body()

    def _begin(self, exchange: Exchange) -> None:
        self._pending.append(exchange)
        if exchange.ended:
            self.answered(exchange)  # It was refused as it was read.
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
            message = f"all large requests together may be {limits.bodies_bytes_max} bytes"
            raise unavailable("too_many_bytes", message)
        self._take_turns()
        current.held += more
        self._held_bytes += more
        server.held_bytes += more

    def _join(self) -> None:
        """Put the pieces together: each one of a few bytes takes fifty."""
        whole = self._body[0]
        if not isinstance(whole, bytearray):
            whole = bytearray(whole)
        whole += b"".join(self._body[1:])
        self._body = [whole]

    def _take_turns(self) -> None:
        """Read on when others were read: uvloop reads megabytes at once from one who sends them."""
        transport = self.transport
        if self._in_line or transport is None:
            return
        self._in_line = True
        self.server.read_in_turn(self)
        if not self._read_paused:
            self._read_paused = True
            transport.pause_reading()

    def _let_go(self, exchange: Exchange) -> None:
        self._held_bytes -= exchange.held
        self.server.held_bytes -= exchange.held
        exchange.held = 0

    def _release(self) -> None:
        """Begin held requests, as many as may be under way."""
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
        """Answer the bytes that were just read with an error, after the answers still owed."""
        exchange = Exchange(self)
        exchange.keep_alive = False
        if self._current is not None:
            self._let_go(self._current)
        self._current = None
        self._body = []
        self._deaf = True
        self._refused = True
        (self._held or self._pending).append(exchange)
        exchange.refuse(refusal)

    def _finish(self, transport: Transport) -> None:
        """Close. A client that is still sending is heard out for a while, or a reset would eat
        the answer that says why it was refused.
        """
        self._deaf = True
        self._since_s = self.server.now_s
        if self._refused and transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()

    def _balance(self) -> None:
        """Read only while the client takes its answers and owes us no more than the bound."""
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
