"""Counts what happened, per (model, version, variant, generation, split), in windows of a second.

Units are counted once per check interval, which is aligned to the epoch and so the same on every
instance; a window never crosses an interval. All memory is bounded, and what a bound drops is
counted. Nothing here does I/O: `drain` hands over what gathered, the stream carries it away.
"""

from __future__ import annotations

from collections.abc import Callable

from contract.histogram import index_of
from contract.messages import Exposure, TelemetryWindow

UNITS_MAX = 200_000
EXPOSURES_MAX = 200_000
WINDOWS_MAX = 10_000
PENDING_EXPOSURES_MAX = 50_000
DEFAULT_INTERVAL_S = 10
QUIET_DRAINS_MAX = 60

Clock = Callable[[], float]
Key = tuple[str, str, str, int, str]


class Units:
    """The units already counted in the present check interval of one split.

    Generations share it: a table that changed something else must not count anybody twice.
    """

    __slots__ = ("failed", "interval", "interval_s", "met", "overflow")

    def __init__(self, interval_s: int) -> None:
        # The length of an interval, seconds.
        self.interval_s = interval_s
        # The number of the interval that the sets belong to.
        self.interval = -1
        # Hashes of the units met, and of those that met an error.
        self.met: set[int] = set()
        # Hashes of the units that met an error.
        self.failed: set[int] = set()
        # Requests of units beyond the bound, which are counted in no set.
        self.overflow = 0

    def roll(self, interval: int) -> None:
        """Begin `interval`, unless it has begun."""
        if interval != self.interval:
            self.interval = interval
            self.met = set()
            self.failed = set()

    def meet(self, digest: int) -> bool:
        """Return True when the unit is new in this interval."""
        if digest in self.met:
            return False
        if len(self.met) >= UNITS_MAX:
            self.overflow += 1
            return False
        self.met.add(digest)
        return True

    def fail(self, digest: int) -> bool:
        """Return True when it is the unit's first error in this interval."""
        if digest in self.failed or digest not in self.met:
            return False
        self.failed.add(digest)
        return True


class Counter:
    """The open window of one key."""

    __slots__ = (
        "_clock",
        "_emit",
        "_interval",
        "_started_at",
        "_units",
        "anonymous",
        "anonymous_errors",
        "cache_hits",
        "errors",
        "fallbacks",
        "key",
        "latency",
        "quiet_drains",
        "requests",
        "unit_errors",
        "units",
    )

    def __init__(
        self, key: Key, units: Units, clock: Clock, emit: Callable[[TelemetryWindow], None]
    ) -> None:
        # (model, version, variant, generation, split).
        self.key = key
        # Who was counted already.
        self._units = units
        # Unix seconds.
        self._clock = clock
        # Takes a window when an interval ends it early.
        self._emit = emit
        # The number of the check interval that the open window belongs to.
        self._interval = -1
        # Drains in a row that found nothing.
        self.quiet_drains = 0
        # When the first request of the open window was counted.
        self._started_at = 0.0
        self._clear()

    def answered(self, unit: str | None, latency_us: float) -> None:
        """Count a request that the version answered."""
        self._count(unit)
        index = index_of(latency_us)
        self.latency[index] = self.latency.get(index, 0) + 1

    def failed(self, unit: str | None, *, fell_back: bool) -> None:
        """Count a request that the version failed."""
        self._count(unit)
        self.errors += 1
        self.fallbacks += fell_back
        if unit is None:
            self.anonymous_errors += 1
        else:
            self.unit_errors += self._units.fail(hash(unit))

    def found(self) -> None:
        """Count a request that the cache answered: it says nothing of the version."""
        self._open()
        self.cache_hits += 1

    def _count(self, unit: str | None) -> None:
        self._open()
        self.requests += 1
        if unit is None:
            self.anonymous += 1
        else:
            self.units += self._units.meet(hash(unit))

    def _open(self) -> None:
        now = self._clock()
        interval = int(now) // self._units.interval_s
        if interval != self._interval:
            self._begin(interval, now)
        if self.requests == 0 and self.cache_hits == 0:
            self._started_at = now

    def _begin(self, interval: int, now: float) -> None:
        window = self.take(now)
        if window is not None:
            self._emit(window)
        self._interval = interval
        self._units.roll(interval)

    def take(self, now: float) -> TelemetryWindow | None:
        """Return the open window and begin another, or None when nothing happened."""
        if self.requests == 0 and self.cache_hits == 0:
            return None
        model, version, variant, generation, split = self.key
        interval_s = self._units.interval_s
        interval_ms = self._interval * interval_s * 1000
        # A window that an interval cut short ends where the interval does.
        ended_ms = min(int(now * 1000), interval_ms + interval_s * 1000)
        window = TelemetryWindow(
            model=model,
            version=version,
            variant=variant,
            generation=generation,
            split=split,
            started_at_ms=int(self._started_at * 1000),
            ended_at_ms=max(ended_ms, int(self._started_at * 1000)),
            interval_started_at_ms=interval_ms,
            requests=self.requests,
            errors=self.errors,
            fallbacks=self.fallbacks,
            units=self.units,
            unit_errors=self.unit_errors,
            anonymous=self.anonymous,
            anonymous_errors=self.anonymous_errors,
            cache_hits=self.cache_hits,
            latency=self.latency,
        )
        self._clear()
        return window

    def _clear(self) -> None:
        self.requests = 0
        self.errors = 0
        self.fallbacks = 0
        self.units = 0
        self.unit_errors = 0
        self.anonymous = 0
        self.anonymous_errors = 0
        self.cache_hits = 0
        self.latency: dict[int, int] = {}


class Telemetry:
    """All counters, and the exposures not yet handed over."""

    def __init__(self, clock: Clock) -> None:
        # Unix seconds.
        self._clock = clock
        # Open counters by key; those of older generations leave when they have gone quiet.
        self._counters: dict[Key, Counter] = {}
        # The units of each (model, version, variant, split), over all generations.
        self._units: dict[tuple[str, str, str, str], Units] = {}
        # Windows that an interval closed before the next drain.
        self._closed: list[TelemetryWindow] = []
        # (experiment, variant, hash of unit) already reported, oldest first. What the bound
        # evicts is reported again, and the consumer keeps the earliest.
        self._exposed: dict[tuple[str, str, int], None] = {}
        # Exposures not yet handed over.
        self._exposures: list[Exposure] = []
        # What the bounds made us give up, by kind.
        self.dropped = {"windows": 0, "exposures": 0}
        # Overflow of the sets that were forgotten.
        self._overflow = 0

    @property
    def units_overflow(self) -> int:
        """How many requests brought a unit beyond the bound of an interval."""
        return self._overflow + sum(units.overflow for units in self._units.values())

    def counter(self, key: Key, interval_s: int = DEFAULT_INTERVAL_S) -> Counter:
        """Return the counter of `key`, making it when it is new."""
        counter = self._counters.get(key)
        if counter is None:
            model, version, variant, _, split = key
            units = self._units.setdefault((model, version, variant, split), Units(interval_s))
            counter = self._counters[key] = Counter(key, units, self._clock, self._close)
        return counter

    def expose(self, experiment: str, unit: str, variant: str, version: str) -> None:
        """Report that `unit` met `variant`, unless that was reported already."""
        key = (experiment, variant, hash(unit))
        if key in self._exposed:
            return
        if len(self._exposures) >= PENDING_EXPOSURES_MAX:
            self.dropped["exposures"] += 1
            return
        if len(self._exposed) >= EXPOSURES_MAX:
            del self._exposed[next(iter(self._exposed))]
        self._exposed[key] = None
        self._exposures.append(
            Exposure(
                experiment=experiment,
                unit=unit,
                variant=variant,
                version=version,
                at_ms=int(self._clock() * 1000),
            )
        )

    def drain(self, generation: int) -> tuple[list[TelemetryWindow], list[Exposure]]:
        """Return what gathered since the last call; `generation` is the one now applied."""
        now = self._clock()
        for key, counter in list(self._counters.items()):
            window = counter.take(now)
            if window is not None:
                self._close(window)
                counter.quiet_drains = 0
            elif key[3] < generation:
                # A request of an older generation may still be under way: wait before forgetting.
                counter.quiet_drains += 1
                if counter.quiet_drains >= QUIET_DRAINS_MAX:
                    del self._counters[key]
                    self._forget_units()
        windows, self._closed = self._closed, []
        exposures, self._exposures = self._exposures, []
        return windows, exposures

    def _forget_units(self) -> None:
        used = {
            (model, version, variant, split) for model, version, variant, _, split in self._counters
        }
        for key in self._units.keys() - used:
            self._overflow += self._units.pop(key).overflow

    def _close(self, window: TelemetryWindow) -> None:
        if len(self._closed) < WINDOWS_MAX:
            self._closed.append(window)
        else:
            self.dropped["windows"] += 1
