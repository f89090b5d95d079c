"""The interface of the prediction path to a client's request, over HTTP or gRPC."""

from __future__ import annotations

from typing import Protocol

from dataplane.admission import Tenancy
from dataplane.errors import Refusal


class Abandonable(Protocol):
    """An object that a caller notifies when its client no longer waits for the answer."""

    def abandoned(self) -> None: ...


class Caller(Protocol):
    """A request that waits for its answer; the first answer counts, later ones do nothing.

    `headers` are those of the request, with lower-case names; over gRPC they are its metadata. The
    headers of an answer are complete lines that end in CRLF.

    A caller with a `tenancy` calls `tenancy.leave` with its first answer, and not before, also if
    the client is gone by then. If the client hangs up before its answer, the caller calls
    `job.abandoned`. A deadline of the protocol itself is passed in the header
    `x-interlock-timeout-ms`. `client_cluster` is the cluster of the client's address, for requests
    without a unit.
    """

    headers: dict[bytes, bytes]
    tenancy: Tenancy | None
    job: Abandonable | None

    @property
    def client_cluster(self) -> int: ...

    def respond(self, status: int, body: bytes, headers: bytes) -> None: ...

    def refuse(self, refusal: Refusal, headers: bytes) -> None: ...
