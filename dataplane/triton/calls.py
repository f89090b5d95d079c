"""Calls in progress, and how they end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from dataplane.triton.call_results import Fault, OnDone, Reply, TritonError

if TYPE_CHECKING:
    from dataplane.triton.connection import Connection
    from dataplane.triton.endpoint import Endpoint
    from dataplane.triton.group import Group
    from dataplane.triton.version_endpoints import Replicas

_EXPIRED = "no answer before the deadline"


class Call:
    """A call to the only endpoint of a cluster; `on_done` is called exactly once.

    While it runs it is counted in its endpoint's `in_flight`: `Endpoint.start` adds it, and each of
    the four ends (answered, broken, malformed, expired) removes it.
    """

    __slots__ = (
        "connection",
        "done",
        "endpoint",
        "group",
        "on_done",
        "request",
        "retried",
        "sent_at",
        "timer",
    )

    def __init__(self, group: Group, request: bytes, on_done: OnDone) -> None:
        # The endpoints that may answer it.
        self.group = group
        # Head and body as sent.
        self.request = request
        # Called with the result.
        self.on_done = on_done
        # The timer of the deadline; set by the creator of the call.
        self.timer: asyncio.TimerHandle | None = None
        # The connection that carries it, None while it waits for one.
        self.connection: Connection | None = None
        # The endpoint that it was last sent to; set when it starts.
        self.endpoint: Endpoint
        # Whether it was retried, or must not be.
        self.retried = False
        # Whether the result was reported.
        self.done = False
        # When it was sent, monotonic; set only if endpoints are compared.
        self.sent_at = 0.0

    def finish(self, result: Reply | TritonError) -> None:
        """Report the result. Later calls do nothing."""
        if self.done:
            return
        self.done = True
        self.connection = None
        if self.timer is not None:
            self.timer.cancel()
        self.on_done(result)

    def answered(self, reply: Reply) -> None:
        """Handle a complete response."""
        self.endpoint.in_flight -= 1
        self.finish(reply)

    def malformed(self, reason: str) -> None:
        """Handle a malformed response."""
        self.endpoint.in_flight -= 1
        self.finish(TritonError(Fault.FAILED, reason))

    def broken(self, reason: str, *, sent: bool) -> None:
        """Handle a broken connection; if not `sent`, it could not be opened."""
        self.endpoint.in_flight -= 1
        if not (sent and self.group.retry_here(self)):
            self.finish(TritonError(Fault.UNREACHABLE, reason))

    def expire(self) -> None:
        """Handle the deadline."""
        self.endpoint.in_flight -= 1
        connection = self.connection
        self.finish(TritonError(Fault.TIMEOUT, _EXPIRED))
        if connection is not None:
            self.endpoint.silent(connection)
            # The response may still come; it must not be taken for that of another call.
            connection.abort()


class BalancedCall(Call):
    """A call that one of several endpoints answers; it updates their health."""

    __slots__ = ("forced", "hedge", "index", "replicas", "rival", "trial", "until")

    def __init__(
        self, group: Group, replicas: Replicas, request: bytes, until: float, on_done: OnDone
    ) -> None:
        super().__init__(group, request, on_done)
        # The replicas of the version.
        self.replicas = replicas
        # The deadline, monotonic.
        self.until = until
        # The index of the endpoint that it was last sent to.
        self.index = 0
        # The same request at another endpoint; the first good response is used for both.
        self.rival: BalancedCall | None = None
        # Sends the rival after a delay.
        self.hedge: asyncio.TimerHandle | None = None
        # A trial: its response is not used; it only tests whether the endpoint and the replica are
        # healthy again.
        self.trial = False
        # Whether it was sent to a replica with an open circuit, because there was no other.
        self.forced = False

    def finish(self, result: Reply | TritonError) -> None:
        if self.done:
            return
        if self.hedge is not None:
            self.hedge.cancel()
            self.hedge = None
        rival = self.rival
        if rival is not None:
            self.rival = rival.rival = None
            if not _is_answer(result):
                # The rival is still in flight; its result is used for both.
                self.on_done = _ignored
            else:
                rival.drop()
        super().finish(result)

    def drop(self) -> None:
        """End without a report: at once if it was not sent, otherwise with its response.

        So the connection can be reused, and the latency is recorded. The deadline still holds.
        """
        self.on_done = _ignored
        self.retried = True
        if self.connection is None:
            self.endpoint.in_flight -= 1
            self.finish(TritonError(Fault.TIMEOUT, "no longer needed"))

    def answered(self, reply: Reply) -> None:
        self.endpoint.in_flight -= 1
        self.connection = None
        if not self.group.learn(self, reply):
            self.finish(reply)

    def malformed(self, reason: str) -> None:
        self.endpoint.in_flight -= 1
        error = TritonError(Fault.FAILED, reason)
        self.group.blame(self, error)
        self.finish(error)

    def broken(self, reason: str, *, sent: bool) -> None:
        self.endpoint.in_flight -= 1
        self.connection = None
        error = TritonError(Fault.UNREACHABLE, reason)
        self.group.blame(self, error)
        if not self.group.retry_elsewhere(self):
            self.finish(error)

    def expire(self) -> None:
        self.group.blame_delay(self, TritonError(Fault.TIMEOUT, _EXPIRED))
        super().expire()


def _is_answer(result: Reply | TritonError) -> bool:
    return isinstance(result, Reply) and result.status < 500 and result.status != 404


def _ignored(_: Reply | TritonError) -> None:
    pass
