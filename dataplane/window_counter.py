"""The open window of one (model, version, variant, generation, split), and its counted units.

A request is counted when it is assigned and again when it ends; the end of a request in progress at
the end of a window is counted in a later window. In a split all counts of units are kept by
cluster, and a window has their sums. Nothing here does I/O, and a request allocates no objects.
"""

from __future__ import annotations

from collections.abc import Callable

from contract.histogram import BUCKET_COUNT, index_of
from contract.messages import CLUSTERS, ClusterCounts, Ends, TelemetryWindow
from dataplane.ends import ANSWERED, CACHED, ENDS, IS_UNANSWERED

UNITS_MAX = 200_000
# Marks of what was counted for a unit in an interval.
ASSIGNED, COUNTED, FAILED, UNANSWERED = 1, 2, 4, 8
# The counts of each cluster, `WIDTH` values as in `ClusterCounts`.
WIDTH = 5
AT_UNITS, AT_ASSIGNED, AT_UNANSWERED, AT_N, AT_ERRORS = range(WIDTH)
# Latencies are counted by cluster and bucket of the histogram.
BUCKET_BITS = 8
assert BUCKET_COUNT <= 1 << BUCKET_BITS

Clock = Callable[[], float]
Key = tuple[str, str, str, int, str]


class Units:
    """The units already counted in the present check interval of one split.

    Generations share it: a new table that changes something else must not count units twice.
    """

    __slots__ = ("_marks", "interval", "interval_s", "overflow")

    def __init__(self, interval_s: int) -> None:
        # The length of an interval, seconds.
        self.interval_s = interval_s
        # The number of the interval of the marks.
        self.interval = -1
        # The marks of each unit, by its hash: ASSIGNED, COUNTED, FAILED, UNANSWERED.
        self._marks: dict[int, int] = {}
        # Requests of units beyond the limit, which are not counted as units.
        self.overflow = 0

    def roll(self, interval: int) -> None:
        """Start `interval`, unless it has started."""
        if interval != self.interval:
            self.interval = interval
            self._marks = {}

    def assign(self, digest: int) -> bool:
        """Return True if the unit was not yet assigned in this interval."""
        marks = self._marks
        unit_marks = marks.get(digest, 0)
        if unit_marks & ASSIGNED or (not unit_marks and len(marks) >= UNITS_MAX):
            return False
        marks[digest] = unit_marks | ASSIGNED
        return True

    def meet(self, digest: int) -> bool:
        """Return True if the unit was not yet answered or failed in this interval."""
        marks = self._marks
        unit_marks = marks.get(digest, 0)
        if unit_marks & COUNTED:
            return False
        if not unit_marks and len(marks) >= UNITS_MAX:
            self.overflow += 1
            return False
        marks[digest] = unit_marks | COUNTED
        return True

    def fail(self, digest: int) -> bool:
        """Return True for the first error of a unit that was counted in this interval."""
        return bool(self._marks.get(digest, 0) & COUNTED) and self._mark(digest, FAILED)

    def leave(self, digest: int) -> bool:
        """Return True if the unit was not yet left unanswered in this interval."""
        return self._mark(digest, UNANSWERED)

    def _mark(self, digest: int, mark: int) -> bool:
        marks = self._marks
        unit_marks = marks.get(digest, 0)
        if unit_marks & mark or (not unit_marks and len(marks) >= UNITS_MAX):
            return False
        marks[digest] = unit_marks | mark
        return True


class Counter:
    """The open window of one key. `cluster` is 0 outside a split, which has no clusters."""

    __slots__ = (
        "_cells",
        "_clock",
        "_closes_at",
        "_emit",
        "_ends",
        "_interval",
        "_is_empty",
        "_opens_at",
        "_started_at",
        "_totals",
        "_units",
        "anonymous",
        "anonymous_errors",
        "assigned_requests",
        "cache_hits",
        "errors",
        "fallbacks",
        "key",
        "latency",
        "quiet_drains",
        "requests",
        "under_way",
    )

    def __init__(
        self,
        key: Key,
        units: Units,
        clock: Clock,
        emit: Callable[[TelemetryWindow], None],
        totals: list[int] | None = None,
    ) -> None:
        # (model, version, variant, generation, split).
        self.key = key
        # The units counted already.
        self._units = units
        # Unix seconds.
        self._clock = clock
        # Called with a window that ends early with its interval.
        self._emit = emit
        # Ends since the start of the process, to which each window is added.
        self._totals = totals if totals is not None else [0] * len(ENDS)
        # The number of the check interval of the open window.
        self._interval = -1
        # When that interval starts and ends, Unix seconds.
        self._opens_at = self._closes_at = 0.0
        # Consecutive drains without counts.
        self.quiet_drains = 0
        # When the first request of the open window was counted.
        self._started_at = 0.0
        # Requests that were assigned in earlier windows and had not ended there.
        self.under_way = 0
        # Whether nothing was counted since the last window.
        self._is_empty = True
        self._clear()

    def assign(self, unit: str | None, cluster: int = 0) -> None:
        """Count that a request is assigned here, however it will end."""
        now = self._clock()
        if self._is_empty or not self._opens_at <= now < self._closes_at:
            self._open(now)
        self.assigned_requests += 1
        if unit is None:
            self._cells[cluster * WIDTH + AT_ASSIGNED] += 1
        elif self._units.assign(hash(unit)):
            at = cluster * WIDTH
            self._cells[at + AT_UNITS] += 1
            self._cells[at + AT_ASSIGNED] += 1

    def answered(
        self, unit: str | None, latency_us: float, cluster: int = 0, *, has_ended: bool = False
    ) -> None:
        """Count a request that the version answered; if it `has_ended`, it came too late."""
        now = self._clock()
        if self._is_empty or not self._opens_at <= now < self._closes_at:
            self._open(now)
        self.requests += 1
        if unit is None:
            self.anonymous += 1
            self._cells[cluster * WIDTH + AT_N] += 1
        elif self._units.meet(hash(unit)):
            self._cells[cluster * WIDTH + AT_N] += 1
        index = cluster << BUCKET_BITS | index_of(latency_us)
        self.latency[index] = self.latency.get(index, 0) + 1
        if not has_ended:
            self._ends[ANSWERED] += 1

    def failed(self, unit: str | None, cluster: int = 0, *, fell_back: bool) -> None:
        """Count a request that the version failed; its end is counted when it ends."""
        self._open(self._clock())
        self.requests += 1
        self.errors += 1
        self.fallbacks += fell_back
        at = cluster * WIDTH
        if unit is None:
            self.anonymous += 1
            self.anonymous_errors += 1
            self._cells[at + AT_N] += 1
            self._cells[at + AT_ERRORS] += 1
        else:
            digest = hash(unit)
            self._cells[at + AT_N] += self._units.meet(digest)
            self._cells[at + AT_ERRORS] += self._units.fail(digest)

    def count_hit(self, *, has_ended: bool = False) -> None:
        """Count a request that the cache answered: it says nothing about the version."""
        now = self._clock()
        if self._is_empty or not self._opens_at <= now < self._closes_at:
            self._open(now)
        self.cache_hits += 1
        if not has_ended:
            self._ends[CACHED] += 1

    def end(self, end: int, unit: str | None, cluster: int = 0) -> None:
        """Count the end of a request that neither its version nor the cache answered."""
        self._open(self._clock())
        self._ends[end] += 1
        if IS_UNANSWERED[end] and (unit is None or self._units.leave(hash(unit))):
            self._cells[cluster * WIDTH + AT_UNANSWERED] += 1

    def _open(self, now: float) -> None:
        # The most frequent callers check inline whether this call is needed.
        if not self._opens_at <= now < self._closes_at:
            self._begin(now)
        if self._is_empty:
            self._is_empty = False
            self._started_at = now

    def _begin(self, now: float) -> None:
        window = self.take(now)
        if window is not None:
            self._emit(window)
        interval_s = self._units.interval_s
        self._interval = interval = int(now) // interval_s
        self._opens_at = interval * interval_s
        self._closes_at = self._opens_at + interval_s
        self._units.roll(interval)

    def take(self, now: float) -> TelemetryWindow | None:
        """Return the open window and start another, or None if nothing was counted."""
        if self._is_empty:
            return None
        model, version, variant, generation, split = self.key
        started_ms = int(self._started_at * 1000)
        # A window that an interval cuts short ends with the interval.
        ended_ms = min(int(now * 1000), int(self._closes_at) * 1000)
        cells = self._cells
        latency, latencies = self._latencies(bool(split))
        window = TelemetryWindow(
            model=model,
            version=version,
            variant=variant,
            generation=generation,
            split=split,
            started_at_ms=started_ms,
            ended_at_ms=max(ended_ms, started_ms),
            interval_started_at_ms=int(self._opens_at) * 1000,
            requests=self.requests,
            errors=self.errors,
            fallbacks=self.fallbacks,
            units=sum(cells[AT_N::WIDTH]) - self.anonymous,
            unit_errors=sum(cells[AT_ERRORS::WIDTH]) - self.anonymous_errors,
            anonymous=self.anonymous,
            anonymous_errors=self.anonymous_errors,
            cache_hits=self.cache_hits,
            latency=latency,
            assigned=sum(cells[AT_ASSIGNED::WIDTH]),
            unanswered=sum(cells[AT_UNANSWERED::WIDTH]),
            assigned_requests=self.assigned_requests,
            ends=Ends(**dict(zip(ENDS, self._ends, strict=True))),
            clusters=self._clusters(latencies) if split else {},
        )
        self.under_way += self.assigned_requests - sum(self._ends)
        for end, count in enumerate(self._ends):
            self._totals[end] += count
        self._clear()
        return window

    def _latencies(self, is_split: bool) -> tuple[dict[int, int], dict[int, dict[int, int]]]:
        """Return the histogram of the window, and those of its clusters."""
        if not is_split:
            return self.latency, {}
        whole: dict[int, int] = {}
        parts: dict[int, dict[int, int]] = {}
        for place, count in self.latency.items():
            cluster, index = place >> BUCKET_BITS, place & (1 << BUCKET_BITS) - 1
            whole[index] = whole.get(index, 0) + count
            parts.setdefault(cluster, {})[index] = count
        return whole, parts

    def _clusters(self, latencies: dict[int, dict[int, int]]) -> dict[int, ClusterCounts]:
        clusters = {}
        for cluster in range(CLUSTERS):
            at = cluster * WIDTH
            counts = self._cells[at : at + WIDTH]
            latency = latencies.get(cluster, {})
            if latency or any(counts):
                units, assigned, unanswered, n, errors = counts
                clusters[cluster] = ClusterCounts(units, assigned, unanswered, n, errors, latency)
        return clusters

    def _clear(self) -> None:
        self._is_empty = True
        self.requests = 0
        self.errors = 0
        self.fallbacks = 0
        self.anonymous = 0
        self.anonymous_errors = 0
        self.cache_hits = 0
        self.assigned_requests = 0
        # Requests by end.
        self._ends = [0] * len(ENDS)
        # The counts of each cluster, one after the other; outside a split there is one.
        self._cells = [0] * (WIDTH * (CLUSTERS if self.key[4] else 1))
        # Answers by cluster and bucket of the histogram.
        self.latency: dict[int, int] = {}
