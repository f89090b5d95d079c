"""The part of tenants' quotas that the workers of an instance share: a memory-mapped file.

A worker takes tokens from the tenant's line under a lock of the file, in a few microseconds, so
that one connection on one worker can use everything that the instance has. The kernel releases the
lock if its holder dies. If the lock cannot be taken in time, its holder is stopped: then the line
is written without the lock, and an update of another worker with its few tokens may be lost.

Times are monotonic seconds, which are the same in all processes of a machine.
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
# Workers with a concurrency count of their own; further ones share.
COLUMNS = 64
# Seconds without a renewal after which an instance enforces its share of the rate by itself.
STALE_S = 1.5
# Seconds of demand that a worker takes in advance.
SLICE_S = 0.05
# Seconds for which a worker does not look again after the credit was used up: a flood of refusals
# costs little.
DRY_S = 0.005
# Attempts to take the lock before continuing without it: about 100 microseconds.
LOCK_TRIES = 200

# Instances of the fleet; time of the last renewal, 0 for never; whether a worker ran short; number
# of active lines.
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
    """The file's record of one tenant."""

    # Tokens that may be used here; negative after a charge.
    credit: float = 0.0
    # Tokens used, and tokens requested in vain, since the file was created.
    used: float = 0.0
    unmet: float = 0.0
    # Credit that the instance gave itself, and that Redis does not know yet.
    owed: float = 0.0
    # Time of the last request, and when the instance last credited itself.
    touched_at: float = 0.0
    filled_at: float = 0.0
    # Tokens per second that the instance can expect.
    share: float = 0.0
    # Concurrent requests that the instance may have, and their recent maximum.
    slots: float = 0.0
    peak: float = 0.0
    # 1 while leases are renewed for it.
    active: float = 0.0

    def numbers(self) -> tuple[float, ...]:
        return (
            self.credit, self.used, self.unmet, self.owed, self.touched_at, self.filled_at,
            self.share, self.slots, self.peak, self.active,
        )  # fmt: skip


class LedgerFull(Exception):
    """All lines are taken."""


class Ledger:
    """One worker's view of the file. Raises OSError if it cannot be created."""

    def __init__(self, path: Path, column: int = 0) -> None:
        # The column of this worker.
        self._column = column % COLUMNS
        # The file; the lock belongs to this open file description, which no other process has.
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(self._file).st_size != _SIZE:
                os.ftruncate(self._file, _SIZE)
            # The mapped bytes.
            self._map = mmap.mmap(self._file, _SIZE)
        except OSError:
            os.close(self._file)
            raise
        with self.locked():
            if self._map[: len(MAGIC)] != MAGIC:
                self._map[:] = bytes(_SIZE)
                _HEADER.pack_into(self._map, 0, MAGIC, 1.0, 0.0, 0.0, 0.0)
        # The previous owner of the column has ended, and so have its requests.
        for number in range(LINES):
            self.note(number, 0)

    def close(self) -> None:
        self._map.close()
        os.close(self._file)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock, or continue without it if it cannot be taken."""
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
        """Instances of the fleet at the last response of Redis; at least 1."""
        return max(1.0, float(_FLAGS.unpack_from(self._map, _FLAGS_AT)[0]))

    @property
    def renewed_at(self) -> float:
        return float(_FLAGS.unpack_from(self._map, _FLAGS_AT)[1])

    @property
    def is_short(self) -> bool:
        """Whether a worker ran short of credit since the last renewal."""
        return bool(_FLAGS.unpack_from(self._map, _FLAGS_AT)[2])

    def renewed(self, now: float, instances: float) -> None:
        """Record a renewal, and the number of instances. Under the lock."""
        _, _, _, active = _FLAGS.unpack_from(self._map, _FLAGS_AT)
        _FLAGS.pack_into(self._map, _FLAGS_AT, max(1.0, instances), now, 0.0, active)

    def is_leased(self, now: float) -> bool:
        """Return whether credit comes from leases; otherwise the instance is on its own."""
        return -STALE_S < now - self.renewed_at < STALE_S

    # --- lines -----------------------------------------------------------------------------------

    def find(self, name: str) -> int:
        """Return the number of the tenant's line, a new one if necessary. Raises LedgerFull."""
        key = xxhash.xxh3_64_intdigest(name.encode()) | 1
        with self.locked():
            for step in range(LINES):
                number = (key + step) % LINES
                at = _LINES_AT + number * _LINE_SIZE
                (stored,) = struct.unpack_from("<Q", self._map, at)
                if stored == 0:
                    struct.pack_into("<Q", self._map, at, key)
                    return number
                if stored == key:
                    return number
        raise LedgerFull

    def read(self, number: int) -> Line:
        return Line(*_NUMBERS.unpack_from(self._map, _numbers_at(number)))

    def write(self, number: int, line: Line) -> None:
        _NUMBERS.pack_into(self._map, _numbers_at(number), *line.numbers())

    def active_lines(self) -> list[int]:
        """Return the numbers of the lines whose leases are renewed. Under the lock."""
        count = min(LINES, int(_FLAGS.unpack_from(self._map, _FLAGS_AT)[3]))
        return list(struct.unpack_from(f"<{count}I", self._map, _ACTIVE_AT))

    def activate(self, number: int) -> None:
        """Renew the leases of a line from now on. Under the lock."""
        instances, renewed_at, _, count = _FLAGS.unpack_from(self._map, _FLAGS_AT)
        if count < LINES:
            struct.pack_into("<I", self._map, _ACTIVE_AT + 4 * int(count), number)
            _FLAGS.pack_into(self._map, _FLAGS_AT, instances, renewed_at, 1.0, count + 1)

    def keep_active(self, numbers: list[int]) -> None:
        """Renew the leases of these lines only. Under the lock."""
        instances, renewed_at, short, _ = _FLAGS.unpack_from(self._map, _FLAGS_AT)
        struct.pack_into(f"<{len(numbers)}I", self._map, _ACTIVE_AT, *numbers)
        _FLAGS.pack_into(self._map, _FLAGS_AT, instances, renewed_at, short, float(len(numbers)))

    def ran_short(self) -> None:
        """Request an early renewal. Under the lock."""
        instances, renewed_at, _, count = _FLAGS.unpack_from(self._map, _FLAGS_AT)
        _FLAGS.pack_into(self._map, _FLAGS_AT, instances, renewed_at, 1.0, count)

    def column(self, number: int) -> tuple[int, int]:
        """Return the concurrent requests of a tenant in this worker, and in all others."""
        counts = _COLUMNS.unpack_from(self._map, _numbers_at(number) + _NUMBERS.size)
        own = counts[self._column]
        return own, sum(counts) - own

    def note(self, number: int, own: int) -> None:
        """Write this worker's column, which no other worker writes."""
        at = _numbers_at(number) + _NUMBERS.size + 4 * self._column
        struct.pack_into("<I", self._map, at, max(0, own))


def _numbers_at(number: int) -> int:
    return _LINES_AT + number * _LINE_SIZE + 8


class Entry:
    """One tenant's quota in a worker.

    A busy worker takes a slice of tokens at a time, for some milliseconds, so that most requests
    need neither the file nor its lock. The unused rest of a slice is returned with the next one; a
    worker that is killed loses it.
    """

    __slots__ = (
        "_burst",
        "_drawn",
        "_dry_until",
        "_ledger",
        "_rate",
        "_slice",
        "_slots",
        "_taken_at",
        "_unmet",
        "_until",
        "_wait_s",
        "number",
    )  # fmt: skip

    def __init__(self, ledger: Ledger, number: int) -> None:
        # The ledger.
        self._ledger = ledger
        # The number of the line.
        self.number = number
        # Limits of the whole fleet: tokens per second, and burst.
        self._rate: float | None = None
        self._burst = 1.0
        # Limit of the whole fleet: concurrent requests.
        self._slots: int | None = None
        # Tokens of this worker's slice, and until when.
        self._slice = 0.0
        self._until = 0.0
        # When the slice was taken, and the tokens taken.
        self._taken_at = 0.0
        self._drawn = 0.0
        # Until when the credit counts as used up, and the tokens requested in vain since the last
        # write.
        self._dry_until = 0.0
        self._unmet = 0.0
        # The wait reported to requests that are refused until then.
        self._wait_s = 0.0

    def limit(self, limits: Limits) -> None:
        self._rate, self._burst, self._slots = limits.rate, limits.burst, limits.slots
        # The next request reads the file.
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
            self._return_slice(line)
            line.unmet += self._unmet
            self._unmet = 0.0
            instances = ledger.instances
            # Tokens that an instance may use at once by itself.
            first = max(1.0, self._burst / instances)
            is_leased = ledger.is_leased(now)
            if not line.active:
                self._activate(line, now, first)
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

    def _return_slice(self, line: Line) -> None:
        """Return the rest of the slice."""
        self._drawn -= self._slice
        line.credit += self._slice
        line.used -= self._slice
        self._slice = 0.0

    def _use(self, line: Line, cost: float, now: float) -> None:
        """Take `cost`, and a slice sized by this worker's recent usage."""
        elapsed_s = max(1e-4, now - self._taken_at)
        own = min((self._drawn + cost) / elapsed_s * SLICE_S, (line.credit - cost) / 4)
        self._slice = max(0.0, float(int(own)))
        self._drawn, self._taken_at, self._until = cost + self._slice, now, now + SLICE_S
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

    def has_slot(self, now: float, in_flight: int) -> bool:
        if self._slots is None:
            return True
        ledger, number = self._ledger, self.number
        with ledger.locked():
            _, others = ledger.column(number)
            line = ledger.read(number)
            if not line.active:
                self._activate(line, now, max(1.0, self._burst / ledger.instances))
            line.touched_at = now
            line.peak = max(line.peak, in_flight + others + 1.0)
            ledger.write(number, line)
            share = line.slots if line.slots > 0 else self._slots / ledger.instances
            has_slot = in_flight + others < max(1, ceil(share))
            if has_slot:
                ledger.note(number, in_flight + 1)
        return has_slot

    def note(self, in_flight: int) -> None:
        if self._slots is not None:
            self._ledger.note(self.number, in_flight)

    def _activate(self, line: Line, now: float, first: float) -> None:
        """Credit what an instance may use by itself; the next renewal reports it to Redis."""
        line.active, line.filled_at = 1.0, now
        if self._rate is not None:
            line.owed += first - line.credit
            line.credit = first
        self._ledger.activate(self.number)
