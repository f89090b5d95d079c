"""One connection to Triton, with the parser of its responses."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, cast

import httptools

from dataplane.triton.call_results import Reply

if TYPE_CHECKING:
    from dataplane.triton.calls import Call
    from dataplane.triton.endpoint import Endpoint

REPLY_BYTES_MAX = 256 * 1024 * 1024
# A server that disappeared silently is detected after 30 s, also on connections without traffic.
_KEEPALIVE = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
# An upgrade that was not requested is malformed as well.
_MALFORMED = (httptools.HttpParserError, httptools.HttpParserUpgrade)


class Connection(asyncio.Protocol):
    """One keep-alive connection; it carries one call at a time."""

    __slots__ = (
        "_body",
        "_bytes",
        "_endpoint",
        "_header_length",
        "_parser",
        "call",
        "idle_since",
        "peer",
        "retire_at",
        "transport",
        "used_at",
    )

    def __init__(self, endpoint: Endpoint) -> None:
        # The pool that it belongs to.
        self._endpoint = endpoint
        # None before it is opened and after it is closed.
        self.transport: asyncio.Transport | None = None
        # The remote address, and the end of its use (monotonic).
        self.peer = ""
        self.retire_at = float("inf")
        # When its last call was sent, and when its last response came.
        self.used_at = self.idle_since = float("-inf")
        # The call that waits for its response.
        self.call: Call | None = None
        # The incremental parser, which calls back into this object.
        self._parser = httptools.HttpResponseParser(self)
        # The pieces of the response so far.
        self._body: list[bytes] = []
        # The length of the body so far.
        self._bytes = 0
        # The value of inference-header-content-length.
        self._header_length: int | None = None

    def send(self, call: Call, now: float) -> None:
        """Send the request of `call`."""
        assert self.transport is not None
        self.used_at = now
        self.call = call
        call.connection = self
        self.transport.write(call.request)

    def abort(self) -> None:
        """Drop the connection and the call on it."""
        self.call = None
        if self.transport is not None:
            self.transport.abort()

    def close(self) -> None:
        """Close an idle connection gracefully."""
        if self.transport is not None:
            self.transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.peer = str(transport.get_extra_info("peername")[0])
        self._endpoint.opened(self)
        _probe(transport.get_extra_info("socket"))

    def connection_lost(self, exc: Exception | None) -> None:
        # Also after a half-close: a server that sends nothing more answers no call.
        self.transport = None
        call, self.call = self.call, None
        self._endpoint.lost(self, call)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except _MALFORMED as error:
            call, self.call = self.call, None
            self.abort()
            if call is not None:
                call.malformed(f"malformed response: {error}")

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == 31 and name.lower() == b"inference-header-content-length":
            if not value.isdigit():
                raise ValueError("inference-header-content-length is not a number")
            self._header_length = int(value)

    def on_body(self, data: bytes) -> None:
        self._bytes += len(data)
        if self._bytes > REPLY_BYTES_MAX:
            raise ValueError(f"the response has more than {REPLY_BYTES_MAX} bytes")
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
            # A response without a call: later bytes cannot be trusted.
            self.abort()
        else:
            self._endpoint.release(self)
        if call is not None:
            call.answered(reply)


def _probe(connected: socket.socket) -> None:
    """Let the kernel detect whether the other end is still there."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
