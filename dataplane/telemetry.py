"""Counts requests per (model, version, variant, generation, split), in windows of a second.

Units are counted once per check interval, which is aligned to the Unix epoch and so the same on
every instance; a window never crosses an interval. All memory is limited, and what a limit drops is
counted. Nothing here does I/O: `drain` returns the collected data, and the stream sends it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from contract.messages import Exposure, TelemetryWindow, UnitMeasurement
from dataplane.unit_sketch import Sketches
from dataplane.window_counter import Clock, Counter, Key, Units

EXPOSURES_MAX = 200_000
WINDOWS_MAX = 10_000
PENDING_EXPOSURES_MAX = 50_000
MEASURED_MAX = 50_000
ATTRIBUTE_LENGTH_MAX = 100
NO_HEADERS: Mapping[bytes, bytes] = MappingProxyType({})
DEFAULT_INTERVAL_S = 10
QUIET_DRAINS_MAX = 60
# The same while a request is in progress, whose end would be lost: longer than any request takes.
BUSY_DRAINS_MAX = 3_600


class Telemetry:
    """All counters, and the exposures that were not drained yet."""

    def __init__(self, clock: Clock) -> None:
        # Unix seconds.
        self._clock = clock
        # Open counters by key; those of older generations are removed once they are quiet.
        self._counters: dict[Key, Counter] = {}
        # The units of each (model, version, variant, split), across generations.
        self._units: dict[tuple[str, str, str, str], Units] = {}
        # Windows that ended with an interval before the next drain.
        self._closed: list[TelemetryWindow] = []
        # (split, variant, hash of unit and tenant) already reported, oldest first. An evicted one
        # is reported again, and the consumer keeps the earliest.
        self._exposed: dict[tuple[str, str, int], None] = {}
        # Exposures that were not drained yet.
        self._exposures: list[Exposure] = []
        # What was dropped because of the limits, by kind.
        self.dropped = {"windows": 0, "exposures": 0, "measurements": 0}
        # [requests, errors, cache hits, latency] by (split, unit, variant), not drained yet.
        self._measured: dict[tuple[str, str, str], list[int]] = {}
        # Sketches of the units of each model.
        self.sketches = Sketches(clock)
        # Overflow of removed sets of units.
        self._overflow = 0

    @property
    def units_overflow(self) -> int:
        """Requests with a unit beyond the limit of an interval."""
        return self._overflow + sum(units.overflow for units in self._units.values())

    def counter(
        self, key: Key, interval_s: int = DEFAULT_INTERVAL_S, totals: list[int] | None = None
    ) -> Counter:
        """Return the counter of `key`; a new one adds the ends of its requests to `totals`."""
        counter = self._counters.get(key)
        if counter is None:
            model, version, variant, _, split = key
            units = self._units.get((model, version, variant, split))
            if units is None or units.interval_s != interval_s:
                # The next step of a rollout may have longer intervals.
                self._overflow += units.overflow if units is not None else 0
                units = self._units[model, version, variant, split] = Units(interval_s)
            counter = self._counters[key] = Counter(key, units, self._clock, self._close, totals)
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
        """Report that `unit` of `tenant` was assigned to `variant`, unless already reported.

        The report carries those `dimensions` that are among the request's headers.
        """
        key = (split, variant, hash(unit) ^ hash(tenant))
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
        """Count a request of (split, unit, variant); latency is for computed answers."""
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
        """Return the measurements since the last call."""
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
        """Return windows and exposures since the last call; `generation` is the applied one."""
        now = self._clock()
        for key, counter in list(self._counters.items()):
            window = counter.take(now)
            if window is not None:
                self._close(window)
                counter.quiet_drains = 0
            elif key[3] < generation:
                # A request of an older generation may still be in progress: wait before removing
                # the counter.
                counter.quiet_drains += 1
                quiet_max = QUIET_DRAINS_MAX if counter.under_way <= 0 else BUSY_DRAINS_MAX
                if counter.quiet_drains >= quiet_max:
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
    values = {name: headers.get(name.encode()) for name in dimensions}
    return {
        name: value.decode("utf-8", "replace")[:ATTRIBUTE_LENGTH_MAX]
        for name, value in values.items()
        if value is not None
    }
