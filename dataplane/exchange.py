"""One HTTP request and the place for its answer."""

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
# Made beforehand for answers of usual lengths: numbers are slow to write.
_LENGTHS_MAX = 4_096
_LENGTHS = tuple(_LENGTH % length for length in range(_LENGTHS_MAX))
_CLOSE = b"connection: close\r\n"
_KEEP_ALIVE = b"connection: keep-alive\r\n"


class Exchange:
    """One request and the place for its answer."""

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
        # The connection that carries the answer.
        self._connection = connection
        # The bytes of the answer, kept here while an earlier request is still unanswered.
        self.answer: bytes | None = None
        # The answer is given, though its bytes may still be in the making.
        self.ended = False
        # In capitals, as it came.
        self.method = b""
        # The request target as it came: path and query.
        self.target = b""
        # Names in lower case; of a repeated header the last one.
        self.headers: dict[bytes, bytes] = {}
        # Whole: an exchange is handed over when its body is complete.
        self.body = b""
        # How the body is packed, where unpacking it is too much for the event loop.
        self.coding: bytes | None = None
        # Bytes of it that count in the budgets until the answer.
        self.held = 0
        # False closes the connection after the answer.
        self.keep_alive = True
        # An HTTP/1.0 client, who must be told that the connection stays.
        self.legacy = False
        # Whose concurrency the request counts in until it is answered; see `caller.Caller`.
        self.tenancy: Tenancy | None = None
        # Told when the client hangs up before the answer.
        self.job: Abandonable | None = None

    @property
    def client_cluster(self) -> int:
        """The cluster of the client's address; those without one share that of an empty one."""
        connection = self._connection
        if connection.cluster is None:
            transport = connection.transport
            peer = transport.get_extra_info("peername") if transport is not None else None
            connection.cluster = cluster_of(str(peer[0]).encode() if peer else b"")
        return connection.cluster

    def respond(self, status: int, body: bytes, headers: bytes = JSON) -> None:
        """Answer with `headers`, complete lines that end in CRLF. Later calls do nothing."""
        if self.ended:
            return
        self.ended = True
        # The two refer to each other; nothing must be left for the garbage collector.
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
        """Answer with the JSON of `refusal`."""
        self.respond(refusal.status, refusal.body(), JSON + headers + refusal.headers())
