"""The results of a call: a reply, or an error with the kind of failure."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import orjson


class Fault(Enum):
    """Kinds of failures of a call."""

    REFUSED = "refused"  # Triton refused the request.
    FAILED = "failed"  # The version answered with an error.
    DEAD = "dead"  # The version is not loaded, or its process has died.
    UNREACHABLE = "unreachable"  # No endpoint could be reached.
    TIMEOUT = "timeout"  # The deadline passed.

    @property
    def is_dead(self) -> bool:
        """Whether the version did not answer at all, so that any other row would fail as well."""
        return self in (Fault.DEAD, Fault.UNREACHABLE, Fault.TIMEOUT)


class TritonError(Exception):
    """A call without an answer; `fault` is the kind of failure."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        # The kind of failure, which decides about retries and fallbacks.
        self.fault = fault
        # Triton's own message, or ours.
        self.message = message
        # Whether the version's breaker counted it: all requests of a call fail with the same error.
        self.counted = False
        # Whether the deadline passed because of our own load, and not because of the version.
        self.is_ours = False


class Unsent(TritonError):
    """The deadline passed while a job waited, here or in Triton; the version never got it."""

    def __init__(self, message: str = "the deadline passed in the queue") -> None:
        super().__init__(Fault.TIMEOUT, message)


class Reply:
    """A response: its status, its body, and the length of the JSON in the body."""

    __slots__ = ("body", "header_length", "status")

    def __init__(self, status: int, header_length: int | None, body: bytes) -> None:
        # The HTTP status.
        self.status = status
        # The length of the JSON in the body; None for all of it.
        self.header_length = header_length
        # The whole body.
        self.body = body

    def error(self) -> TritonError:
        """Return the error of a response other than 200."""
        try:
            message = str(orjson.loads(self.body)["error"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            message = f"HTTP {self.status}"
        if "Stub process" in message or "is not healthy" in message:
            # A crashed Python backend is never restarted by Triton and still reports READY.
            return TritonError(Fault.DEAD, message)
        if self.status == 503 and "timeout expired" in message:
            return Unsent(f"the deadline passed in Triton's queue: {message}")
        if self.status == 404 or self.status == 503:
            return TritonError(Fault.DEAD, message)
        fault = Fault.REFUSED if 400 <= self.status < 500 else Fault.FAILED
        return TritonError(fault, message)


OnDone = Callable[[Reply | TritonError], None]
