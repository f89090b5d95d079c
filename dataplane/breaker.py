"""A circuit breaker for one version, or one copy of it: closed, open, half-open.

Closed, it counts failures among the last answers and opens at the threshold, or after a few answers
in a row that say that the version is gone. Open, it lets nothing through until `open_ms` have
passed; then, half-open, one request at a time tries the version, and its answer closes or reopens.
It needs no control plane: it acts within a few requests. A call is one answer, however many
requests it carries: one lost batch must not shut a version out that a sibling endpoint serves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum

from contract.routing import Breaker as Settings

# A crashed process takes seconds for each of its answers; nobody need wait for ten of them.
GONE_IN_A_ROW = 3


class State(Enum):
    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """Times are seconds on any monotonic clock, passed in by the caller."""

    __slots__ = (
        "_dead",
        "_gone",
        "_on_trip",
        "_probing",
        "_results",
        "_retry_at",
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
        # Closed until proved otherwise.
        self.state = State.CLOSED
        # Closed and without a recent failure: the caller need neither ask nor tell of answers.
        self.calm = True
        # True for a failure, over the last `window` answers.
        self._results: deque[bool] = deque()
        # How many of those failed.
        self.recent_failures = 0
        # Answers in a row that said that the version is gone.
        self._gone = 0
        # When an open breaker may be tried again.
        self._retry_at = 0.0
        # The one trial of the half-open state is under way.
        self._probing = False
        # The last trip was for a version that does not answer at all, so that even a request
        # with nowhere else to go had better be refused at once.
        self._dead = False

    @property
    def failure_share(self) -> float:
        """The share of failures among the last answers; answers in calm times are not kept."""
        return self.recent_failures / len(self._results) if self._results else 0.0

    def admits(self, now: float, *, last_resort: bool = False) -> bool:
        """Return whether a request may try the version; a True may use up the half-open trial.

        A `last_resort` has no other version to go to, so faulty answers of some requests must
        not shut out the others: it is refused only while the version does not answer at all.
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
        """Count an answer; it is `together` with another one if that is of the same call."""
        if self.state is State.CLOSED:
            self._gone = 0
            if not together:
                self._push(False)
        elif self.state is State.HALF_OPEN:
            self.state = State.CLOSED
            self._clear()
        self.calm = self.state is State.CLOSED and self.recent_failures == 0

    def failed(self, now: float, reason: str, *, dead: bool, gone: bool = False) -> None:
        """Count a call that failed.

        `dead` says that the version did not answer at all, `gone` that it certainly will not.
        """
        self.calm = False
        if self.state is State.HALF_OPEN:
            self._open(now, reason, dead=dead)
        elif self.state is State.CLOSED:
            self._push(True)
            self._gone = self._gone + 1 if gone else 0
            enough = self.recent_failures >= self.settings.failures
            if (enough or self._gone >= GONE_IN_A_ROW) and self.may_open():
                self._open(now, reason, dead=dead)

    def released(self) -> None:
        """Give back a trial that ended without a verdict, such as a client's bad request."""
        self._probing = False

    def reset(self) -> None:
        """Close: the version has proved to be well."""
        self.state = State.CLOSED
        self._clear()
        self.calm = True

    def may_open(self) -> bool:
        """Return whether there is no reason against opening."""
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
        self._gone = 0
        self._probing = False
