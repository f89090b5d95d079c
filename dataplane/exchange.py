"""One HTTP request and its response."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dataplane import compression
from dataplane.errors import Refusal
from dataplane.unit_clusters import cluster_of

if TYPE_CHECKING:
    from dataplane.admission import Tenancy
    from dataplane.caller import Abandonable
    from dataplane.http_protocol import HttpConnection

REASONS = {
    200: b"OK",
    202: b"Accepted",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    413: b"Content Too Large",
    415: b"Unsupported Media Type",
    417: b"Expectation Failed",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}
JSON = b"content-type: application/json\r\n"
_STATUS_LINES = {
    status: b"HTTP/1.1 %d %s\r\n" % (status, reason) for status, reason in REASONS.items()
}
_LENGTH = b"content-length: %d\r\n\r\n"
# Formatted in advance for usual lengths: formatting numbers is slow.
_LENGTHS_MAX = 4_096
_LENGTHS = tuple(_LENGTH % length for length in range(_LENGTHS_MAX))
_CLOSE = b"connection: close\r\n"
_KEEP_ALIVE = b"connection: keep-alive\r\n"


class Exchange:
    """One HTTP request and its response."""

    __slots__ = (
        "_connection",
        "answer",
        "body",
        "coding",
        "ended",
        "headers",
        "held",
        "job",
        "keep_alive",
        "legacy",
        "method",
        "target",
        "tenancy",
    )

    def __init__(self, connection: HttpConnection) -> None:
        # The connection that carries the response.
        self._connection = connection
        # The bytes of the response, kept while an earlier request is unanswered.
        self.answer: bytes | None = None
        # Whether there is a response; its bytes may still be in compression.
        self.ended = False
        # In capitals, as received.
        self.method = b""
        # The request target as received: path and query.
        self.target = b""
        # By lower-case name; the last value of a repeated header.
        self.headers: dict[bytes, bytes] = {}
        # Complete: an exchange is passed on when its body is complete.
        self.body = b""
        # The compression of the body, if it is too large to decompress in the event loop.
        self.coding: bytes | None = None
        # Bytes of the body that count in the budgets until the response.
        self.held = 0
        # False closes the connection after the response.
        self.keep_alive = True
        # An HTTP/1.0 client, which needs `connection: keep-alive` in the response.
        self.legacy = False
        # The tenant whose concurrency the request counts in until it is answered; see
        # `caller.Caller`.
        self.tenancy: Tenancy | None = None
        # Notified if the client hangs up before the response.
        self.job: Abandonable | None = None

    @property
    def client_cluster(self) -> int:
        """The cluster of the client's address; clients without an address share one."""
        connection = self._connection
        if connection.cluster is None:
            transport = connection.transport
            peer = transport.get_extra_info("peername") if transport is not None else None
            connection.cluster = cluster_of(str(peer[0]).encode() if peer else b"")
        return connection.cluster

    def respond(self, status: int, body: bytes, headers: bytes = JSON) -> None:
        """Respond with `headers`, complete lines that end in CRLF. Later calls do nothing."""
        if self.ended:
            return
        self.ended = True
        # Breaks the reference cycle, so that nothing is left for the garbage collector.
        self.job = None
        if self.tenancy is not None:
            self.tenancy.leave()
        if len(body) >= self._connection.server.compress_bytes_min:
            coding = compression.accepted(self.headers.get(b"accept-encoding", b""))
            if coding is not None and self.method != b"HEAD":
                self._respond_packed(status, body, headers, coding)
                return
        self._send(status, body, headers)

    def _respond_packed(self, status: int, body: bytes, headers: bytes, coding: bytes) -> None:
        def packed(result: bytes) -> None:
            lines = headers
            if result is not body:
                lines += b"content-encoding: %b\r\nvary: accept-encoding\r\n" % coding
            self._send(status, result, lines)

        compression.pack(body, coding, packed)

    def _send(self, status: int, body: bytes, headers: bytes) -> None:
        connection = self._connection
        if not self.keep_alive or connection.server.stopping:
            self.keep_alive = False
            headers += _CLOSE
        elif self.legacy:
            headers += _KEEP_ALIVE
        length = len(body)
        self.answer = (
            _STATUS_LINES[status]
            + connection.server.date
            + headers
            + (_LENGTHS[length] if length < _LENGTHS_MAX else _LENGTH % length)
            + (b"" if self.method == b"HEAD" else body)
        )
        connection.answered(self)

    def refuse(self, refusal: Refusal, headers: bytes = b"") -> None:
        """Respond with the JSON of `refusal`."""
        self.respond(refusal.status, refusal.body(), JSON + headers + refusal.headers())
