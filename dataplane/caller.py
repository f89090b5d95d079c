"""What the prediction path needs of whoever asked, be it over HTTP or gRPC."""

from __future__ import annotations

from typing import Protocol

from dataplane.admission import Tenancy
from dataplane.errors import Refusal


class Abandonable(Protocol):
    """What a caller tells that nobody waits for its answer any more."""

    def abandoned(self) -> None: ...


class Caller(Protocol):
    """A request that waits for its answer; the first answer counts, later ones do nothing.

    `headers` are the request's, names in lower case; over gRPC they are its metadata. The headers
    of an answer are complete lines that end in CRLF.

    With its first answer, and not before, a caller with a `tenancy` calls `tenancy.leave`, also
    when the client is gone by then. A client that hangs up before its answer: `job.abandoned`.
    A deadline that the protocol itself carries stands in the headers as `x-interlock-timeout-ms`.
    `client_cluster` is the cluster of the client's address, for requests without a unit.
    """

    headers: dict[bytes, bytes]
    tenancy: Tenancy | None
    job: Abandonable | None

    @property
    def client_cluster(self) -> int: ...

    def respond(self, status: int, body: bytes, headers: bytes) -> None: ...

    def refuse(self, refusal: Refusal, headers: bytes) -> None: ...
