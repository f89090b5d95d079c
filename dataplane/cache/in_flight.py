"""Identical requests under way: the first goes, the others wait for its answer.

A flight ends with an answer, which all get, or because the first one failed. Then the next of
those who wait goes in its place, once; if that fails too, everybody goes alone, so that a request
which always fails holds nobody up. Each waiter keeps its own deadline, and one that it cannot make
ends that waiter alone.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

from dataplane.cache.entry import Entry, Scope

if TYPE_CHECKING:
    from dataplane.cache.store import ModelCache
    from dataplane.codec import InferRequest
    from dataplane.serving import Lane

log = logging.getLogger("interlock.dataplane")

# Beyond these many a request goes by itself, where the bounds of the queue hold.
WAITERS_MAX = 1_024


class CachedLane:
    """A lane of a model whose answers are cached, once for each thing that its headers may say."""

    __slots__ = ("local", "miss", "model", "scope", "shared")

    def __init__(
        self, model: ModelCache, scope: Scope, miss: Lane, local: Lane, shared: Lane
    ) -> None:
        # The cache as the model uses it.
        self.model = model
        # Whose answers these are.
        self.scope = scope
        # For what the version computes.
        self.miss = miss
        # For an answer of the first tier.
        self.local = local
        # For an answer of the second tier.
        self.shared = shared


class Asker(Protocol):
    """A prediction, as far as the cache knows it. `deadline` is on `time.monotonic`."""

    request: InferRequest
    deadline: float
    ticket: Ticket | None

    def found(self, lane: Lane, entry: Entry) -> None:
        """Answer with `entry`."""

    def go_on(self, lane: Lane) -> None:
        """Ask the version."""

    def overdue(self, lane: Lane) -> None:
        """Fail: the deadline passed while somebody else was asking."""


class Ticket:
    """What the cache knows of one prediction that it did not answer at once."""

    __slots__ = ("asker", "flight", "key", "lane", "timer")

    def __init__(self, asker: Asker, lane: CachedLane, key: bytes) -> None:
        # Whose ticket it is.
        self.asker = asker
        # Where it goes, and under which headers.
        self.lane = lane
        # The key of its answer.
        self.key = key
        # The flight that it leads or waits in; None for one that goes alone.
        self.flight: Flight | None = None
        # Ends the waiting at the deadline; None for one that does not wait.
        self.timer: asyncio.TimerHandle | None = None

    def go_on(self) -> None:
        """Ask the version; those who wait must not hang on one that cannot."""
        try:
            self.asker.go_on(self.lane.miss)
        except BaseException:
            self.failed()
            raise

    def answered(self, entry: Entry | None) -> None:
        """The version answered this one; None for an answer that is not kept."""
        flight, self.flight = self.flight, None
        if flight is not None:
            flight.lost() if entry is None else flight.settle(entry)

    def failed(self) -> None:
        """The version did not answer this one: those who wait for it must not fail with it."""
        flight, self.flight = self.flight, None
        if flight is not None:
            flight.lost()

    def wait(self, flight: Flight, delay_s: float, loop: asyncio.AbstractEventLoop) -> None:
        """Wait for the answer of `flight`, for `delay_s` at most."""
        self.flight = flight
        flight.waiting[self] = None
        self.timer = loop.call_later(max(0.0, delay_s), self._overdue)

    def stop_waiting(self, flight: Flight | None) -> None:
        """Wait no longer; from now on lead `flight`, or go alone."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.flight = flight

    def _overdue(self) -> None:
        assert self.flight is not None
        self.flight.waiting.pop(self, None)
        self.stop_waiting(None)
        self.asker.overdue(self.lane.miss)


class Flight:
    """One key under way; the leader is not among those who wait."""

    __slots__ = ("_flights", "_key", "_second", "deadline", "waiting")

    def __init__(self, flights: Flights, key: bytes, deadline: float, *, second: bool) -> None:
        # Where it is to be found until it ends.
        self._flights = flights
        # Under which key.
        self._key = key
        # It took the place of one that was lost.
        self._second = second
        # After this nobody joins: the leader should have answered or failed long ago.
        self.deadline = deadline
        # Those who wait, in the order of their coming.
        self.waiting: dict[Ticket, None] = {}

    def settle(self, entry: Entry, *, shared: bool = False) -> None:
        """Answer everybody with `entry`; `shared` says that the second tier brought it."""
        for ticket in self._end():
            ticket.stop_waiting(None)
            ticket.asker.ticket = None
            lane = ticket.lane
            try:
                ticket.asker.found(lane.shared if shared else lane.local, entry)
            except Exception:
                # The others still wait.
                log.exception("a request that waited could not be answered")

    def lost(self) -> None:
        """The leader failed: another one leads, or everybody goes alone."""
        waiting = self._end()
        flight = None
        if waiting and not self._second:
            leader, *others = waiting
            flight = self._flights.begin(self._key, leader.asker.deadline, second=True)
            flight.waiting = dict.fromkeys(others)
            for ticket in others:
                ticket.flight = flight
            waiting = [leader]
        for ticket in waiting:
            ticket.stop_waiting(flight)
        for ticket in waiting:
            try:
                ticket.go_on()
            except Exception:
                # The others still wait.
                log.exception("a request that waited could not go on")

    def _end(self) -> list[Ticket]:
        self._flights.forget(self._key, self)
        waiting, self.waiting = list(self.waiting), {}
        return waiting


class Flights:
    """Every key under way."""

    def __init__(self) -> None:
        # As many as there are requests under way, which others bound.
        self._flights: dict[bytes, Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def get(self, key: bytes, now: float) -> Flight | None:
        """Return the flight of `key` that a request may join at `now`."""
        flight = self._flights.get(key)
        if flight is None or flight.deadline <= now or len(flight.waiting) >= WAITERS_MAX:
            return None
        return flight

    def begin(self, key: bytes, deadline: float, *, second: bool = False) -> Flight:
        """Begin a flight; one of that key that nobody may join any more is found no longer."""
        flight = self._flights[key] = Flight(self, key, deadline, second=second)
        return flight

    def forget(self, key: bytes, flight: Flight) -> None:
        """Find `flight` no more."""
        if self._flights.get(key) is flight:
            del self._flights[key]
