"""The first tier: answers in this process, limited in entries and in bytes.

The least recently used answer is evicted first. The age of an entry is checked when it is
requested, against the model's current time to live, so that a shorter one takes effect at once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from dataplane.cache.entry import Entry

# An entry larger than this fraction of the limit would evict too many others and is not kept.
PART_MAX = 8
# Entries that a sweep checks per turn of the loop.
SWEEP_AT_ONCE = 500


class LocalCache:
    """Entries by key, the least recently used first."""

    def __init__(self, loop: asyncio.AbstractEventLoop, entries_max: int, bytes_max: int) -> None:
        # Runs the sweep, a part in each turn.
        self._loop = loop
        # Maximum entries.
        self._entries_max = entries_max
        # Maximum sum of their sizes.
        self._bytes_max = bytes_max
        # The entries; a hit moves to the end.
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        # The sum of their sizes.
        self.bytes = 0
        # Entries evicted because of the limits.
        self.evictions = 0
        # Keys that the sweep has not checked yet.
        self._sweeping: list[bytes] = []

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, oldest_at: float) -> Entry | None:
        """Return the entry of `key` if it is from after `oldest_at` and its version is served."""
        entries = self._entries
        entry = entries.get(key)
        if entry is None:
            return None
        if entry.stored_at < oldest_at or not entry.scope.alive:
            self._drop(key)
            return None
        entries.move_to_end(key)
        return entry

    def put(self, key: bytes, entry: Entry) -> None:
        """Store `entry`, replacing an entry of the same key."""
        if not entry.scope.alive or entry.size > self._bytes_max // PART_MAX:
            return
        entries = self._entries
        before = entries.pop(key, None)
        if before is not None:
            self.bytes -= before.size
        entries[key] = entry
        self.bytes += entry.size
        while len(entries) > self._entries_max or self.bytes > self._bytes_max:
            _, oldest = entries.popitem(last=False)
            self.bytes -= oldest.size
            self.evictions += 1

    def drop_dead(self) -> None:
        """Drop the entries of versions that left the table, over the next turns of the loop."""
        idle = not self._sweeping
        self._sweeping = list(self._entries)
        if idle and self._sweeping:
            self._loop.call_soon(self._sweep)

    def _sweep(self) -> None:
        keys = self._sweeping[-SWEEP_AT_ONCE:]
        del self._sweeping[-SWEEP_AT_ONCE:]
        for key in keys:
            entry = self._entries.get(key)
            if entry is not None and not entry.scope.alive:
                self._drop(key)
        if self._sweeping:
            self._loop.call_soon(self._sweep)

    def _drop(self, key: bytes) -> None:
        self.bytes -= self._entries.pop(key).size
