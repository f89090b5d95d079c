"""A circuit breaker for one version, or one replica of it: closed, open, half-open.

Closed, it counts failures among the last answers and opens at the threshold, or after a few
consecutive answers that say that the version is gone. Open, it admits nothing until `open_ms` have
passed; then, half-open, it admits one request at a time as a trial, whose answer closes or reopens
it. It needs no control plane and acts within a few requests. A call counts as one answer, however
many requests it carries: one lost batch must not shut out a version that a sibling endpoint serves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum

from contract.routing import Breaker as Settings

# A crashed process takes seconds for each of its answers: there is no need to wait for ten of them.
UNREACHABLE_IN_A_ROW = 3


class State(Enum):
    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """Times are seconds on any monotonic clock, passed in by the caller."""

    __slots__ = (
        "_dead",
        "_on_trip",
        "_probing",
        "_results",
        "_retry_at",
        "_unreachable",
        "calm",
        "recent_failures",
        "settings",
        "state",
    )

    def __init__(self, settings: Settings, on_trip: Callable[[str], None]) -> None:
        # The threshold, the window and the time to stay open.
        self.settings = settings
        # Called with the reason each time the breaker opens.
        self._on_trip = on_trip
        # The current state.
        self.state = State.CLOSED
        # Closed and without a recent failure: the caller need not report answers or call `admits`.
        self.calm = True
        # The last `window` answers, True for a failure.
        self._results: deque[bool] = deque()
        # The number of failures among them.
        self.recent_failures = 0
        # Consecutive answers that said that the version is gone.
        self._unreachable = 0
        # When an open breaker becomes half-open.
        self._retry_at = 0.0
        # Whether the trial of the half-open state is in progress.
        self._probing = False
        # Whether the last trip was for a version that does not answer at all, so that even a
        # request without an alternative is better refused at once.
        self._dead = False

    @property
    def failure_share(self) -> float:
        """The share of failures among the last answers; answers while `calm` are not kept."""
        return self.recent_failures / len(self._results) if self._results else 0.0

    def admits(self, now: float, *, last_resort: bool = False) -> bool:
        """Return whether a request may try the version; True may use up the half-open trial.

        A `last_resort` has no other version, and bad answers to some requests must not shut out the
        others: it is refused only while the version does not answer at all.
        """
        if self.state is State.CLOSED:
            return True
        if self.state is State.OPEN and now >= self._retry_at:
            self.state = State.HALF_OPEN
            self._probing = False
        if self.state is State.HALF_OPEN and not self._probing:
            self._probing = True
            return True
        return last_resort and not self._dead

    def succeeded(self, *, together: bool = False) -> None:
        """Count an answer; `together` is true if an earlier answer of the same call was counted."""
        if self.state is State.CLOSED:
            self._unreachable = 0
            if not together:
                self._push(False)
        elif self.state is State.HALF_OPEN:
            self.state = State.CLOSED
            self._clear()
        self.calm = self.state is State.CLOSED and self.recent_failures == 0

    def failed(self, now: float, reason: str, *, dead: bool, unreachable: bool = False) -> None:
        """Count a call that failed.

        `dead`: the version did not answer at all. `unreachable`: it certainly will not.
        """
        self.calm = False
        if self.state is State.HALF_OPEN:
            self._open(now, reason, dead=dead)
        elif self.state is State.CLOSED:
            self._push(True)
            self._unreachable = self._unreachable + 1 if unreachable else 0
            enough = self.recent_failures >= self.settings.failures
            if (enough or self._unreachable >= UNREACHABLE_IN_A_ROW) and self.may_open():
                self._open(now, reason, dead=dead)

    def released(self) -> None:
        """Return a trial that ended without a verdict, such as a client's bad request."""
        self._probing = False

    def reset(self) -> None:
        """Close: the version is known to be healthy."""
        self.state = State.CLOSED
        self._clear()
        self.calm = True

    def may_open(self) -> bool:
        """Return whether the breaker may open; subclasses can forbid it."""
        return True

    def _open(self, now: float, reason: str, *, dead: bool) -> None:
        self.state = State.OPEN
        self._retry_at = now + self.settings.open_ms / 1000
        self._dead = dead
        self._clear()
        self._on_trip(reason)

    def _push(self, failed: bool) -> None:
        self._results.append(failed)
        self.recent_failures += failed
        if len(self._results) > self.settings.window:
            self.recent_failures -= self._results.popleft()

    def _clear(self) -> None:
        self._results.clear()
        self.recent_failures = 0
        self._unreachable = 0
        self._probing = False
