"""One connection to Triton and the parser of what comes over it."""

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
# An upgrade that nobody asked for is as malformed as anything else.
# A server that went away without a word is noticed after half a minute, also where nothing is sent.
_KEEPALIVE = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
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
        # The pool it belongs to.
        self._endpoint = endpoint
        # None before it is made and after it is lost.
        self.transport: asyncio.Transport | None = None
        # The address at the other end, and until when (monotonic) it is used.
        self.peer = ""
        self.retire_at = float("inf")
        # When its last call was sent, and when its last answer came.
        self.used_at = self.idle_since = float("-inf")
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

    def send(self, call: Call, now: float) -> None:
        """Write the request of `call`; its answer ends it."""
        assert self.transport is not None
        self.used_at = now
        self.call = call
        call.connection = self
        self.transport.write(call.request)

    def abort(self) -> None:
        """Drop the connection together with whatever is under way on it."""
        self.call = None
        if self.transport is not None:
            self.transport.abort()

    def close(self) -> None:
        """Close an idle connection as the protocol has it."""
        if self.transport is not None:
            self.transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.peer = str(transport.get_extra_info("peername")[0])
        self._endpoint.made(self)
        _probe(transport.get_extra_info("socket"))

    def connection_lost(self, exc: Exception | None) -> None:
        # Also after a half-close: a server that will send nothing more answers no call.
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
                call.malformed(f"malformed answer: {error}")

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == 31 and name.lower() == b"inference-header-content-length":
            if not value.isdigit():
                raise ValueError("the length of the JSON is no number")
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
            call.answered(reply)


def _probe(connected: socket.socket) -> None:
    """Have the kernel find out whether the other end is still there."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
