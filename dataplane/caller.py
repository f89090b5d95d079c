"""What the prediction path needs of whoever asked, be it over HTTP or gRPC."""

from __future__ import annotations

from typing import Protocol

from dataplane.errors import Refusal


class Caller(Protocol):
    """A request that waits for its answer; the first answer counts, later ones do nothing.

    `headers` are the request's, names in lower case; over gRPC they are its metadata. The headers
    of an answer are complete lines that end in CRLF.
    """

    headers: dict[bytes, bytes]

    def respond(self, status: int, body: bytes, headers: bytes) -> None: ...

    def refuse(self, refusal: Refusal, headers: bytes) -> None: ...
