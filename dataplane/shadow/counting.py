"""Counts results of copied requests, in a window for each (model, shadow, generation).

Some pairs of answers are kept as well, to compare both with an outcome later. They are chosen
before the comparison: the content of a pair must not decide whether it is kept.
"""

from __future__ import annotations

from collections.abc import Callable

from contract.histogram import index_of
from contract.messages import ShadowPair, ShadowWindow
from dataplane.shadow.comparison import Difference

Clock = Callable[[], float]
# Pairs that are kept per window, which is about a second.
PAIRS_MAX = 20
# (model, shadow's version, stable version, generation, the shadow's id).
Key = tuple[str, str, str, int, str]


class ShadowCounter:
    """The open window of one key."""

    __slots__ = (
        "_clock",
        "_pairs",
        "_pairs_left",
        "_started_at",
        "compared",
        "difference",
        "dropped",
        "errors",
        "key",
        "latency",
        "outstanding",
    )

    def __init__(self, key: Key, clock: Clock, pairs: list[ShadowPair]) -> None:
        # The key.
        self.key = key
        # Unix seconds.
        self._clock = clock
        # The list of pairs, shared by all counters.
        self._pairs = pairs
        # Copies in progress that will be counted here.
        self.outstanding = 0
        # When the first copy of the open window was counted; None before.
        self._started_at: float | None = None
        self._clear()

    def takes_pair(self) -> bool:
        """Use up one of the open window's pairs; return False if none is left."""
        self._pairs_left -= 1
        return self._pairs_left >= 0

    def keep(self, pair: ShadowPair) -> None:
        """Keep a pair, after `takes_pair` returned True."""
        self._pairs.append(pair)

    def answered(self, latency_us: float) -> None:
        """Count the latency of a shadow's answer."""
        self._begin()
        index = index_of(latency_us)
        self.latency[index] = self.latency.get(index, 0) + 1

    def differed(self, difference: Difference) -> None:
        """Count a copy that has both answers, and their differences."""
        self._begin()
        self.compared += 1
        self.difference.add(difference)

    def failed(self) -> None:
        """Count a copy that the shadow failed."""
        self._begin()
        self.errors += 1

    def drop(self) -> None:
        """Count a copy that was not sent or not compared."""
        self._begin()
        self.dropped += 1

    def take(self) -> ShadowWindow | None:
        """Return the open window and start another, or None if it is empty."""
        if self._started_at is None:
            return None
        model, version, stable, generation, shadow = self.key
        difference = self.difference
        window = ShadowWindow(
            model=model,
            version=version,
            stable=stable,
            generation=generation,
            shadow=shadow,
            started_at_ms=int(self._started_at * 1000),
            ended_at_ms=int(max(self._clock(), self._started_at) * 1000),
            compared=self.compared,
            rows=difference.rows,
            flips=difference.flips,
            beyond_tolerance=difference.beyond_tolerance,
            largest_difference=difference.largest_difference,
            rank_correlation_sum=difference.rank_correlation_sum,
            ranked=difference.ranked,
            errors=self.errors,
            dropped=self.dropped,
            latency=self.latency,
        )
        self._clear()
        return window

    def _begin(self) -> None:
        if self._started_at is None:
            self._started_at = self._clock()

    def _clear(self) -> None:
        self._started_at = None
        self.compared = 0
        self.errors = 0
        self.dropped = 0
        self.difference = Difference()
        self.latency: dict[int, int] = {}
        self._pairs_left = PAIRS_MAX


class ShadowTelemetry:
    """All counters of shadows; a counter of an old table is removed after its last copy."""

    def __init__(self, clock: Clock) -> None:
        # Unix seconds.
        self._clock = clock
        # Open counters; at most one per shadow with requests, and per copy in progress.
        self._counters: dict[Key, ShadowCounter] = {}
        # Pairs that were not drained yet.
        self._pairs: list[ShadowPair] = []

    def counter(self, key: Key) -> ShadowCounter:
        """Return the counter of `key`, and create it if it is new."""
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = ShadowCounter(key, self._clock, self._pairs)
        return counter

    def drain_pairs(self) -> list[ShadowPair]:
        """Return the pairs that were kept since the last call."""
        pairs = list(self._pairs)
        # Counters keep using the same list.
        self._pairs.clear()
        return pairs

    def drain(self) -> list[ShadowWindow]:
        """Return the windows since the last call."""
        windows = []
        for key, counter in list(self._counters.items()):
            window = counter.take()
            if window is not None:
                windows.append(window)
            elif counter.outstanding == 0:
                # It is created again with the next copy.
                del self._counters[key]
        return windows
