"""What a call may come to: a reply, or an error that says what kind of failure it was."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import orjson


class Fault(Enum):
    """What kind of failure a call met."""

    REFUSED = "refused"  # Triton found fault with the request.
    FAILED = "failed"  # The version answered with an error.
    DEAD = "dead"  # The version is not there, or its process is gone.
    UNREACHABLE = "unreachable"  # No endpoint could be talked to.
    TIMEOUT = "timeout"  # The deadline passed.

    @property
    def is_dead(self) -> bool:
        """True when the version did not answer at all, so that any row would fare the same."""
        return self in (Fault.DEAD, Fault.UNREACHABLE, Fault.TIMEOUT)


class TritonError(Exception):
    """A call that brought no answer; `fault` says what kind of failure it was."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        # What may be done about it depends on this.
        self.fault = fault
        # Triton's own message, or ours.
        self.message = message
        # The version's breaker knows of it: all requests of a call fail by the same error.
        self.counted = False
        # The deadline passed, and the version is not to blame: it had too much to do.
        self.is_ours = False


class Unsent(TritonError):
    """The time of a job passed while it waited, here or in Triton; the version never saw it."""

    def __init__(self, message: str = "the deadline passed in the queue") -> None:
        super().__init__(Fault.TIMEOUT, message)


class Reply:
    """A response: its status, its body, and how much of the body is JSON."""

    __slots__ = ("body", "header_length", "status")

    def __init__(self, status: int, header_length: int | None, body: bytes) -> None:
        # The HTTP status.
        self.status = status
        # How much of the body is JSON; None for all.
        self.header_length = header_length
        # The whole body.
        self.body = body

    def error(self) -> TritonError:
        """Return what an answer other than 200 means."""
        try:
            message = str(orjson.loads(self.body)["error"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            message = f"HTTP {self.status}"
        if "Stub process" in message or "is not healthy" in message:
            # A crashed Python backend is never restarted by Triton and still reports READY.
            return TritonError(Fault.DEAD, message)
        if self.status == 503 and "timeout expired" in message:
            return Unsent(f"the time to wait in Triton's queue has passed: {message}")
        if self.status == 404 or self.status == 503:
            return TritonError(Fault.DEAD, message)
        fault = Fault.REFUSED if 400 <= self.status < 500 else Fault.FAILED
        return TritonError(fault, message)


OnDone = Callable[[Reply | TritonError], None]
