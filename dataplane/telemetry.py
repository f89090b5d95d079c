"""Counts what happened, per (model, version, variant, generation, split), in windows of a second.

Units are counted once per check interval, which is aligned to the epoch and so the same on every
instance; a window never crosses an interval. All memory is bounded, and what a bound drops is
counted. Nothing here does I/O: `drain` hands over what gathered, the stream carries it away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from contract.histogram import index_of
from contract.messages import Exposure, TelemetryWindow, UnitMeasurement
from dataplane.crowd import Crowds

UNITS_MAX = 200_000
EXPOSURES_MAX = 200_000
WINDOWS_MAX = 10_000
PENDING_EXPOSURES_MAX = 50_000
MEASURED_MAX = 50_000
ATTRIBUTE_LENGTH_MAX = 100
NO_HEADERS: Mapping[bytes, bytes] = MappingProxyType({})
DEFAULT_INTERVAL_S = 10
QUIET_DRAINS_MAX = 60
# What may have been counted of a unit.
ASSIGNED, MET, FAILED = 1, 2, 4

Clock = Callable[[], float]
Key = tuple[str, str, str, int, str]


class Units:
    """The units already counted in the present check interval of one split.

    Generations share it: a table that changed something else must not count anybody twice.
    """

    __slots__ = ("_marks", "interval", "interval_s", "overflow")

    def __init__(self, interval_s: int) -> None:
        # The length of an interval, seconds.
        self.interval_s = interval_s
        # The number of the interval that the marks belong to.
        self.interval = -1
        # What was counted of each unit, by its hash: ASSIGNED, MET, FAILED.
        self._marks: dict[int, int] = {}
        # Requests of units beyond the bound, which are counted in nothing.
        self.overflow = 0

    def roll(self, interval: int) -> None:
        """Begin `interval`, unless it has begun."""
        if interval != self.interval:
            self.interval = interval
            self._marks = {}

    def assign(self, digest: int) -> bool:
        """Return True when the unit was not yet assigned in this interval."""
        return self._mark(digest, ASSIGNED)

    def meet(self, digest: int) -> bool:
        """Return True when the unit was not yet answered or failed in this interval."""
        is_new = self._mark(digest, MET)
        self.overflow += digest not in self._marks
        return is_new

    def fail(self, digest: int) -> bool:
        """Return True when it is the first error of a unit that was met in this interval."""
        return bool(self._marks.get(digest, 0) & MET) and self._mark(digest, FAILED)

    def _mark(self, digest: int, mark: int) -> bool:
        marks = self._marks
        seen = marks.get(digest, 0)
        if seen & mark or (not seen and len(marks) >= UNITS_MAX):
            return False
        marks[digest] = seen | mark
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
        "assigned",
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

    def assign(self, unit: str | None) -> None:
        """Count that the split sent a request here, whatever will become of it."""
        self._open()
        self.assigned += 1 if unit is None else self._units.assign(hash(unit))

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
        if self._is_empty():
            self._started_at = now

    def _is_empty(self) -> bool:
        return self.requests == 0 and self.assigned == 0 and self.cache_hits == 0

    def _begin(self, interval: int, now: float) -> None:
        window = self.take(now)
        if window is not None:
            self._emit(window)
        self._interval = interval
        self._units.roll(interval)

    def take(self, now: float) -> TelemetryWindow | None:
        """Return the open window and begin another, or None when nothing happened."""
        if self._is_empty():
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
            assigned=self.assigned,
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
        self.assigned = 0
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
        # (split, variant, hash of unit) already reported, oldest first. What the bound
        # evicts is reported again, and the consumer keeps the earliest.
        self._exposed: dict[tuple[str, str, int], None] = {}
        # Exposures not yet handed over.
        self._exposures: list[Exposure] = []
        # What the bounds made us give up, by kind.
        self.dropped = {"windows": 0, "exposures": 0, "measurements": 0}
        # [requests, errors, cache hits, latency] by (split, unit, variant), not yet handed over.
        self._measured: dict[tuple[str, str, str], list[int]] = {}
        # Which units ask each model.
        self.crowds = Crowds(clock)
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

    def expose(
        self,
        split: str,
        unit: str,
        variant: str,
        version: str,
        tenant: str = "",
        headers: Mapping[bytes, bytes] = NO_HEADERS,
        dimensions: tuple[str, ...] = (),
    ) -> None:
        """Report that `unit` met `variant`, unless that was reported already.

        The report carries those `dimensions` that are among the request's headers.
        """
        key = (split, variant, hash(unit))
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
                experiment=split,
                unit=unit,
                variant=variant,
                version=version,
                at_ms=int(self._clock() * 1000),
                tenant=tenant,
                attributes=_attributes(headers, dimensions) if dimensions else {},
            )
        )

    def measure(
        self, key: tuple[str, str, str], errors: int, cache_hits: int, latency_us: int
    ) -> None:
        """Count a request of (split, unit, variant); latency is of one that was computed."""
        counts = self._measured.get(key)
        if counts is None:
            if len(self._measured) >= MEASURED_MAX:
                self.dropped["measurements"] += 1
                return
            counts = self._measured[key] = [0, 0, 0, 0]
        counts[0] += 1
        counts[1] += errors
        counts[2] += cache_hits
        counts[3] += latency_us

    def drain_measured(self) -> list[UnitMeasurement]:
        """Return what was measured since the last call."""
        measured, self._measured = self._measured, {}
        return [
            UnitMeasurement(
                experiment=split,
                unit=unit,
                variant=variant,
                requests=requests,
                errors=errors,
                cache_hits=cache_hits,
                latency_us=latency_us,
            )
            for (split, unit, variant), (requests, errors, cache_hits, latency_us) in (
                measured.items()
            )
        ]

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


def _attributes(headers: Mapping[bytes, bytes], dimensions: tuple[str, ...]) -> dict[str, str]:
    found = {name: headers.get(name.encode()) for name in dimensions}
    return {
        name: value.decode("utf-8", "replace")[:ATTRIBUTE_LENGTH_MAX]
        for name, value in found.items()
        if value is not None
    }
