"""What the workers of an instance share of its tenants' quotas: a file that all of them map.

A worker takes tokens from the tenant's line under a lock of the file, in a few microseconds, so
that one connection on one worker can use all that the instance has. The kernel frees the lock with
whoever held it. One that cannot be had in time belongs to a process that was stopped: then the line
is written without it, and an update of another worker may get lost with its few tokens.

Times are monotonic seconds, which all processes of a machine read alike.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path

import xxhash

from dataplane.quotas.limits import Limits

MAGIC = b"ilquota1"
LINES = 4_096
# Workers whose requests under way are told apart; further ones share.
COLUMNS = 64
# Without a renewal for so long an instance goes on alone, with its share of the rate.
STALE_S = 1.5
# For so long a worker takes tokens ahead.
SLICE_S = 0.05
# For so long a worker that found nothing does not look again: a flood of refusals costs little.
DRY_S = 0.005
# How often the lock is tried for before it is done without: some 100 microseconds.
LOCK_TRIES = 200

# Instances of the fleet; when leases were renewed last, 0 for never; whether somebody ran short;
# how many lines are woken.
_HEADER = struct.Struct("<8sdddd")
_HEADER_SIZE = 64
_FLAGS_AT = 8
_FLAGS = struct.Struct("<dddd")
_ACTIVE_AT = _HEADER_SIZE
_LINES_AT = _ACTIVE_AT + 4 * LINES
_NUMBERS = struct.Struct("<10d")
_COLUMNS = struct.Struct(f"<{COLUMNS}I")
_LINE_SIZE = 8 + _NUMBERS.size + _COLUMNS.size
_SIZE = _LINES_AT + LINES * _LINE_SIZE


@dataclass(slots=True)
class Line:
    """What the file says of one tenant."""

    # Tokens that may be used here; below nought after a charge.
    credit: float = 0.0
    # Tokens used and tokens that were asked for in vain, since the file was made.
    used: float = 0.0
    unmet: float = 0.0
    # Credit that the instance gave itself, and that Redis does not know of yet.
    owed: float = 0.0
    # When somebody asked last, and when the instance last filled it by itself.
    touched_at: float = 0.0
    filled_at: float = 0.0
    # Tokens per second that the instance may expect.
    share: float = 0.0
    # Requests that the instance may have under way, and how many there were at most of late.
    places: float = 0.0
    peak: float = 0.0
    # 1 while leases are renewed for it.
    woken: float = 0.0

    def numbers(self) -> tuple[float, ...]:
        return (
            self.credit, self.used, self.unmet, self.owed, self.touched_at, self.filled_at,
            self.share, self.places, self.peak, self.woken,
        )  # fmt: skip


class LedgerFull(Exception):
    """All lines are taken."""


class Ledger:
    """The file, as one worker has it. Raises OSError where it cannot be made."""

    def __init__(self, path: Path, column: int = 0) -> None:
        # Which column of a line is this worker's.
        self._column = column % COLUMNS
        # The file; the lock is this description's, which no other process has.
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(self._file).st_size != _SIZE:
                os.ftruncate(self._file, _SIZE)
            # Its bytes.
            self._map = mmap.mmap(self._file, _SIZE)
        except OSError:
            os.close(self._file)
            raise
        with self.locked():
            if self._map[: len(MAGIC)] != MAGIC:
                self._map[:] = bytes(_SIZE)
                _HEADER.pack_into(self._map, 0, MAGIC, 1.0, 0.0, 0.0, 0.0)
        # Whoever had the column before is gone, and its requests with it.
        for number in range(LINES):
            self.note(number, 0)

    def close(self) -> None:
        self._map.close()
        os.close(self._file)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock, or go on without it where it cannot be had."""
        is_held = self.lock()
        try:
            yield
        finally:
            if is_held:
                self.unlock()

    def lock(self) -> bool:
        for _ in range(LOCK_TRIES):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            return True
        return False

    def unlock(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)

    # --- the header ------------------------------------------------------------------------------

    @property
    def instances(self) -> float:
        """How many instances the fleet had when Redis was last heard; at least 1."""
        return max(1.0, float(_FLAGS.unpack_from(self._map, _FLAGS_AT)[0]))

    @property
    def renewed_at(self) -> float:
        return float(_FLAGS.unpack_from(self._map, _FLAGS_AT)[1])

    @property
    def is_short(self) -> bool:
        """Whether somebody ran short of credit since the last renewal."""
        return bool(_FLAGS.unpack_from(self._map, _FLAGS_AT)[2])

    def renewed(self, now: float, instances: float) -> None:
        """Note that Redis was heard, and how many instances it knows. Under the lock."""
        _, _, _, active = _FLAGS.unpack_from(self._map, _FLAGS_AT)
        _FLAGS.pack_into(self._map, _FLAGS_AT, max(1.0, instances), now, 0.0, active)

    def is_leased(self, now: float) -> bool:
        """Say whether credit comes from leases, or the instance is on its own."""
        return -STALE_S < now - self.renewed_at < STALE_S

    # --- lines -----------------------------------------------------------------------------------

    def find(self, name: str) -> int:
        """Return the number of the tenant's line, a new one if need be. Raises LedgerFull."""
        key = xxhash.xxh3_64_intdigest(name.encode()) | 1
        with self.locked():
            for step in range(LINES):
                number = (key + step) % LINES
                at = _LINES_AT + number * _LINE_SIZE
                (found,) = struct.unpack_from("<Q", self._map, at)
                if found == 0:
                    struct.pack_into("<Q", self._map, at, key)
                    return number
                if found == key:
                    return number
        raise LedgerFull

    def read(self, number: int) -> Line:
        return Line(*_NUMBERS.unpack_from(self._map, _numbers_at(number)))

    def write(self, number: int, line: Line) -> None:
        _NUMBERS.pack_into(self._map, _numbers_at(number), *line.numbers())

    def woken(self) -> list[int]:
        """Return the numbers of the lines for which leases are renewed. Under the lock."""
        count = min(LINES, int(_FLAGS.unpack_from(self._map, _FLAGS_AT)[3]))
        return list(struct.unpack_from(f"<{count}I", self._map, _ACTIVE_AT))

    def wake(self, number: int) -> None:
        """Have leases renewed for a line from now on. Under the lock."""
        instances, renewed_at, _, count = _FLAGS.unpack_from(self._map, _FLAGS_AT)
        if count < LINES:
            struct.pack_into("<I", self._map, _ACTIVE_AT + 4 * int(count), number)
            _FLAGS.pack_into(self._map, _FLAGS_AT, instances, renewed_at, 1.0, count + 1)

    def keep_woken(self, numbers: list[int]) -> None:
        """Have leases renewed for these lines alone. Under the lock."""
        instances, renewed_at, short, _ = _FLAGS.unpack_from(self._map, _FLAGS_AT)
        struct.pack_into(f"<{len(numbers)}I", self._map, _ACTIVE_AT, *numbers)
        _FLAGS.pack_into(self._map, _FLAGS_AT, instances, renewed_at, short, float(len(numbers)))

    def ran_short(self) -> None:
        """Have leases renewed before their time. Under the lock."""
        instances, renewed_at, _, count = _FLAGS.unpack_from(self._map, _FLAGS_AT)
        _FLAGS.pack_into(self._map, _FLAGS_AT, instances, renewed_at, 1.0, count)

    def column(self, number: int) -> tuple[int, int]:
        """Return how many requests of a tenant this worker has under way, and all others."""
        counts = _COLUMNS.unpack_from(self._map, _numbers_at(number) + _NUMBERS.size)
        own = counts[self._column]
        return own, sum(counts) - own

    def note(self, number: int, own: int) -> None:
        """Write this worker's column, which no other writes."""
        at = _numbers_at(number) + _NUMBERS.size + 4 * self._column
        struct.pack_into("<I", self._map, at, max(0, own))


def _numbers_at(number: int) -> int:
    return _LINES_AT + number * _LINE_SIZE + 8


class Entry:
    """One tenant's quota, as a worker takes from it.

    A busy worker takes a slice at a time, of some milliseconds, so that most requests meet neither
    the file nor its lock. What it did not use of a slice goes back with the next one; a worker that
    is killed loses it.
    """

    __slots__ = (
        "_asked", "_burst", "_dry_until", "_ledger", "_places", "_rate", "_slice", "_taken_at",
        "_unmet", "_until", "_wait_s", "number",
    )  # fmt: skip

    def __init__(self, ledger: Ledger, number: int) -> None:
        # Where the line is.
        self._ledger = ledger
        # Which line it is.
        self.number = number
        # Of the whole fleet: tokens that a second brings, and tokens at once.
        self._rate: float | None = None
        self._burst = 1.0
        # Of the whole fleet: requests that may be under way.
        self._places: int | None = None
        # Tokens that are this worker's own, and until when.
        self._slice = 0.0
        self._until = 0.0
        # When the slice was taken, and what it was then.
        self._taken_at = 0.0
        self._asked = 0.0
        # Until when nothing is there, and what was asked for in vain since the file was told.
        self._dry_until = 0.0
        self._unmet = 0.0
        # How long whoever is refused until then is told to wait.
        self._wait_s = 0.0

    def limit(self, limits: Limits) -> None:
        self._rate, self._burst, self._places = limits.rate, limits.burst, limits.places
        # The next request looks into the file.
        self._until = self._dry_until = 0.0

    def take(self, now: float, cost: float) -> float:
        if cost <= self._slice and now < self._until:
            self._slice -= cost
            return 0.0
        if now < self._dry_until:
            self._unmet += cost
            return self._wait_s
        return self._take(now, cost) if self._rate is not None else 0.0

    def _take(self, now: float, cost: float) -> float:
        rate = self._rate
        assert rate is not None
        ledger, number = self._ledger, self.number
        with ledger.locked():
            line = ledger.read(number)
            self._give_back(line)
            line.unmet += self._unmet
            self._unmet = 0.0
            instances = ledger.instances
            # What an instance may use at once by itself.
            first = max(1.0, self._burst / instances)
            is_leased = ledger.is_leased(now)
            if not line.woken:
                self._wake(line, now, first)
            elif not is_leased:
                filled = line.credit + max(0.0, now - line.filled_at) * rate / instances
                line.credit = min(max(first, line.credit), filled)
            line.filled_at = line.touched_at = now
            cost = min(cost, self._burst)
            needed = min(cost, first)
            passes = line.credit >= needed
            if passes:
                self._use(line, cost, now)
            else:
                line.unmet += cost
            if is_leased and line.credit < first / 2:
                ledger.ran_short()
            ledger.write(number, line)
        if passes:
            return 0.0
        share = line.share if is_leased and line.share > 0 else rate / instances
        self._wait_s = (needed - line.credit) / share if share > 0 else inf
        self._dry_until = now + min(self._wait_s, DRY_S)
        return self._wait_s

    def _give_back(self, line: Line) -> None:
        """Give back what is left of the slice."""
        self._asked -= self._slice
        line.credit += self._slice
        line.used -= self._slice
        self._slice = 0.0

    def _use(self, line: Line, cost: float, now: float) -> None:
        """Take `cost`, and a slice of what this worker used of late."""
        elapsed_s = max(1e-4, now - self._taken_at)
        own = min((self._asked + cost) / elapsed_s * SLICE_S, (line.credit - cost) / 4)
        self._slice = max(0.0, float(int(own)))
        self._asked, self._taken_at, self._until = cost + self._slice, now, now + SLICE_S
        line.credit -= cost + self._slice
        line.used += cost + self._slice

    def charge(self, cost: float) -> None:
        if self._rate is None:
            return
        ledger = self._ledger
        with ledger.locked():
            line = ledger.read(self.number)
            line.credit -= cost
            line.used += cost
            ledger.write(self.number, line)

    def has_place(self, now: float, in_flight: int) -> bool:
        if self._places is None:
            return True
        ledger, number = self._ledger, self.number
        with ledger.locked():
            _, others = ledger.column(number)
            line = ledger.read(number)
            if not line.woken:
                self._wake(line, now, max(1.0, self._burst / ledger.instances))
            line.touched_at = now
            line.peak = max(line.peak, in_flight + others + 1.0)
            ledger.write(number, line)
            share = line.places if line.places > 0 else self._places / ledger.instances
            has_place = in_flight + others < max(1, ceil(share))
            if has_place:
                ledger.note(number, in_flight + 1)
        return has_place

    def note(self, in_flight: int) -> None:
        if self._places is not None:
            self._ledger.note(self.number, in_flight)

    def _wake(self, line: Line, now: float, first: float) -> None:
        """Give the instance what it may use by itself; Redis is told with the next renewal."""
        line.woken, line.filled_at = 1.0, now
        if self._rate is not None:
            line.owed += first - line.credit
            line.credit = first
        self._ledger.wake(self.number)
