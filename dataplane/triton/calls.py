"""One request under way, and the end of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from dataplane.triton.call_results import Fault, OnDone, Reply, TritonError

if TYPE_CHECKING:
    from dataplane.triton.connection import Connection
    from dataplane.triton.endpoint import Endpoint
    from dataplane.triton.group import Group
    from dataplane.triton.version_endpoints import Copies

_EXPIRED = "no answer before the deadline"


class Call:
    """A call to the only endpoint of a cluster; `on_done` learns of its end exactly once.

    While it runs it is counted in its endpoint's `in_flight`: `Endpoint.start` counts it in, and
    each of the four ways to end (answered, broken, malformed, expired) counts it out.
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
        # The endpoints that may answer it, and what they have learnt.
        self.group = group
        # Head and body as they go over the wire.
        self.request = request
        # Called with the end.
        self.on_done = on_done
        # The deadline; armed by whoever makes the call.
        self.timer: asyncio.TimerHandle | None = None
        # The connection that carries it, None while it waits for one.
        self.connection: Connection | None = None
        # Where it was sent last; set when it starts.
        self.endpoint: Endpoint
        # It has had its second chance, or is not to have one.
        self.retried = False
        # The end was reported.
        self.done = False
        # When it went out, monotonic; only known where endpoints are compared.
        self.sent_at = 0.0

    def finish(self, result: Reply | TritonError) -> None:
        """Report the end. Later calls do nothing."""
        if self.done:
            return
        self.done = True
        self.connection = None
        if self.timer is not None:
            self.timer.cancel()
        self.on_done(result)

    def answered(self, reply: Reply) -> None:
        """Take a whole answer."""
        self.endpoint.in_flight -= 1
        self.finish(reply)

    def malformed(self, reason: str) -> None:
        """Take an answer that is none."""
        self.endpoint.in_flight -= 1
        self.finish(TritonError(Fault.FAILED, reason))

    def broken(self, reason: str, *, sent: bool) -> None:
        """The connection broke before a whole answer came, or (not `sent`) could not be made."""
        self.endpoint.in_flight -= 1
        if not (sent and self.group.try_again_here(self)):
            self.finish(TritonError(Fault.UNREACHABLE, reason))

    def expire(self) -> None:
        """The deadline has passed."""
        self.endpoint.in_flight -= 1
        connection = self.connection
        self.finish(TritonError(Fault.TIMEOUT, _EXPIRED))
        if connection is not None:
            self.endpoint.silent(connection)
            # The answer may still come; it must not be taken for that of another call.
            connection.abort()


class BalancedCall(Call):
    """A call that one of several endpoints answers, and that teaches which of them are well."""

    __slots__ = ("copies", "forced", "hedge", "index", "rival", "trial", "until")

    def __init__(
        self, group: Group, copies: Copies, request: bytes, until: float, on_done: OnDone
    ) -> None:
        super().__init__(group, request, on_done)
        # The copies of the version it is for.
        self.copies = copies
        # The deadline, monotonic.
        self.until = until
        # Which of the group's endpoints it was sent to last.
        self.index = 0
        # The same request at another endpoint; the first good answer is for both.
        self.rival: BalancedCall | None = None
        # Sends the rival.
        self.hedge: asyncio.TimerHandle | None = None
        # Nobody waits for it: it only finds out whether the endpoint and the copy are well again.
        self.trial = False
        # It was sent to a copy whose circuit is open, because there was no other.
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
                # The rival is still under way; whatever it meets is the end of both.
                self.on_done = _ignored
            else:
                rival.drop()
        super().finish(result)

    def drop(self) -> None:
        """End without a report: at once if it was not sent, else when its answer has come.

        The connection stays good that way, and the time of the answer is learnt. The deadline
        holds as before.
        """
        self.on_done = _ignored
        self.retried = True
        if self.connection is None:
            self.endpoint.in_flight -= 1
            self.finish(TritonError(Fault.TIMEOUT, "not needed any more"))

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
        if not self.group.try_elsewhere(self):
            self.finish(error)

    def expire(self) -> None:
        self.group.blame_delay(self, TritonError(Fault.TIMEOUT, _EXPIRED))
        super().expire()


def _is_answer(result: Reply | TritonError) -> bool:
    return isinstance(result, Reply) and result.status < 500 and result.status != 404


def _ignored(_: Reply | TritonError) -> None:
    pass
