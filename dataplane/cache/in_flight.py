"""Identical requests in flight: the first calls the version, the others wait for its answer.

A flight ends with an answer, which all get, or with the failure of the first request. Then the next
waiting request takes its place, once; if that fails too, each request goes alone, so that a request
which always fails does not delay others. Each waiting request keeps its own deadline, which ends
only that request.
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

# Waiting requests of a flight; further ones go alone, within the limits of the queue.
WAITERS_MAX = 1_024


class CachedLane:
    """A lane of a model with a cache, in one form for each cache state of its headers."""

    __slots__ = ("local", "miss", "model", "scope", "shared")

    def __init__(
        self, model: ModelCache, scope: Scope, miss: Lane, local: Lane, shared: Lane
    ) -> None:
        # The cache of the model.
        self.model = model
        # The scope of the answers.
        self.scope = scope
        # For answers that the version computes.
        self.miss = miss
        # For answers of the first tier.
        self.local = local
        # For answers of the second tier.
        self.shared = shared


class Waiter(Protocol):
    """A prediction, as the cache sees it. `deadline` is on `time.monotonic`."""

    request: InferRequest
    deadline: float
    ticket: Ticket | None

    def on_hit(self, lane: Lane, entry: Entry) -> None:
        """Answer with `entry`."""

    def on_miss(self, lane: Lane) -> None:
        """Call the version."""

    def on_timeout(self, lane: Lane) -> None:
        """Fail: the deadline passed while another request called the version."""


class Ticket:
    """The cache's state of one prediction that it did not answer at once."""

    __slots__ = ("flight", "key", "lane", "timer", "waiter")

    def __init__(self, waiter: Waiter, lane: CachedLane, key: bytes) -> None:
        # The prediction.
        self.waiter = waiter
        # The lane, with its headers.
        self.lane = lane
        # The key of its answer.
        self.key = key
        # The flight that it leads or waits in; None if it goes alone.
        self.flight: Flight | None = None
        # Fires at the deadline; None if it does not wait.
        self.timer: asyncio.TimerHandle | None = None

    def call_version(self) -> None:
        """Call the version; if that raises, the waiting requests continue without it."""
        try:
            self.waiter.on_miss(self.lane.miss)
        except BaseException:
            self.failed()
            raise

    def answered(self, entry: Entry | None) -> None:
        """End the flight with the version's answer; None for an answer that is not cached."""
        flight, self.flight = self.flight, None
        if flight is not None:
            flight.lost() if entry is None else flight.settle(entry)

    def failed(self) -> None:
        """End the flight without an answer: the waiting requests must not fail with this one."""
        flight, self.flight = self.flight, None
        if flight is not None:
            flight.lost()

    def wait(self, flight: Flight, delay_s: float, loop: asyncio.AbstractEventLoop) -> None:
        """Wait for the answer of `flight`, for at most `delay_s`."""
        self.flight = flight
        flight.waiting[self] = None
        self.timer = loop.call_later(max(0.0, delay_s), self._on_timeout)

    def stop_waiting(self, flight: Flight | None) -> None:
        """Stop waiting; from now on lead `flight`, or go alone."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.flight = flight

    def _on_timeout(self) -> None:
        assert self.flight is not None
        self.flight.waiting.pop(self, None)
        self.stop_waiting(None)
        self.waiter.on_timeout(self.lane.miss)


class Flight:
    """One key in flight; the leader is not among the waiting."""

    __slots__ = ("_flights", "_key", "_second", "deadline", "waiting")

    def __init__(self, flights: Flights, key: bytes, deadline: float, *, second: bool) -> None:
        # The registry that it is in until it ends.
        self._flights = flights
        # Its key.
        self._key = key
        # Whether it replaces a flight whose leader failed.
        self._second = second
        # After this no request joins: the leader should have answered or failed long ago.
        self.deadline = deadline
        # The waiting tickets, in the order of arrival.
        self.waiting: dict[Ticket, None] = {}

    def settle(self, entry: Entry, *, shared: bool = False) -> None:
        """Answer all with `entry`; `shared` says that it is from the second tier."""
        for ticket in self._end():
            ticket.stop_waiting(None)
            ticket.waiter.ticket = None
            lane = ticket.lane
            try:
                ticket.waiter.on_hit(lane.shared if shared else lane.local, entry)
            except Exception:
                # The others still wait.
                log.exception("a request that waited could not be answered")

    def lost(self) -> None:
        """Continue after the leader failed: with another leader, or each request alone."""
        waiting = self._end()
        flight = None
        if waiting and not self._second:
            leader, *others = waiting
            flight = self._flights.begin(self._key, leader.waiter.deadline, second=True)
            flight.waiting = dict.fromkeys(others)
            for ticket in others:
                ticket.flight = flight
            waiting = [leader]
        for ticket in waiting:
            ticket.stop_waiting(flight)
        for ticket in waiting:
            try:
                ticket.call_version()
            except Exception:
                # The others still wait.
                log.exception("a waiting request could not continue")

    def _end(self) -> list[Ticket]:
        self._flights.forget(self._key, self)
        waiting, self.waiting = list(self.waiting), {}
        return waiting


class Flights:
    """All keys in flight."""

    def __init__(self) -> None:
        # At most one per request in progress, whose number is limited elsewhere.
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
        """Start a flight; it replaces one of the same key that no request may join any more."""
        flight = self._flights[key] = Flight(self, key, deadline, second=second)
        return flight

    def forget(self, key: bytes, flight: Flight) -> None:
        """Remove `flight`."""
        if self._flights.get(key) is flight:
            del self._flights[key]
