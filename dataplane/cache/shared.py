"""The second tier: answers in Redis, which the instances share. Any failure is a miss.

All lookups of one turn of the loop are sent in one call, and so are all writes. A lookup ends at
its own short deadline, whether or not Redis responded. After a few consecutive failures no calls
are made for a while, so that a dead Redis costs nothing. No request waits for a write.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from itertools import islice
from random import uniform
from time import monotonic
from typing import Protocol

import redis.asyncio as redis

from dataplane import redis_client
from dataplane.cache.digest import SCHEMA

log = logging.getLogger("interlock.dataplane")

PREFIX = b"interlock:cache:%d:" % SCHEMA
# Concurrent calls; lookups that come meanwhile join the next call.
CALLS_MAX = 4
# Keys of one read call, and writes of one write call.
KEYS_MAX = 256
# Lookups that may wait for a call; further ones are misses at once.
WAITING_MAX = 4_096
# Writes that may wait; further ones are dropped.
WRITES_MAX = 1_024
WRITE_BYTES_MAX = 8 * 1024 * 1024
# Larger values are not stored.
VALUE_BYTES_MAX = 1024 * 1024
# Consecutive failures after which no calls are made for a while.
FAILURES_MAX = 3
BACK_OFF_MIN_S = 0.25
BACK_OFF_MAX_S = 5.0
# Lifetimes vary by this fraction, so that entries stored together do not expire together.
JITTER = 0.1
# A call may outlive its lookups: opening a connection takes time.
CALL_TIMEOUT_S = 1.0


class Lookup(Protocol):
    """The callback of a lookup; called exactly once, with None for a miss."""

    def on_value(self, value: bytes | None) -> None: ...


class _Batch:
    """The lookups of one call."""

    __slots__ = ("keys", "lookups", "timer")

    def __init__(self) -> None:
        # The keys, with their prefix.
        self.keys: list[bytes] = []
        # The callbacks, in the same order; empty once they were called.
        self.lookups: list[Lookup] = []
        # Fires at the deadline.
        self.timer: asyncio.TimerHandle | None = None

    def end(self, values: list[bytes | None] | None) -> None:
        """Call all callbacks; with None all lookups are misses."""
        if self.timer is not None:
            self.timer.cancel()
        lookups, self.lookups = self.lookups, []
        for i, lookup in enumerate(lookups):
            try:
                lookup.on_value(values[i] if values is not None else None)
            except Exception:
                # The others of the call still wait.
                log.exception("a lookup callback failed")


class SharedCache:
    """Values by key in Redis."""

    def __init__(
        self, client: redis.Redis[bytes], loop: asyncio.AbstractEventLoop, timeout_s: float
    ) -> None:
        # A separate client: telemetry must not wait behind answers.
        self._client = client
        # Runs timers and calls.
        self._loop = loop
        # The deadline of lookups.
        self._timeout_s = timeout_s
        # The batch that is being filled, and those that wait for a call.
        self._batches: list[_Batch] = []
        # Lookups in the batches.
        self._waiting = 0
        # Writes that wait: the lifetime in ms and the value, by key.
        self._writes: dict[bytes, tuple[int, bytes]] = {}
        # The sum of their lengths.
        self._write_bytes = 0
        # Whether `_send` is scheduled.
        self._due = False
        # Calls in progress, referenced so that they are not garbage collected.
        self._calls: set[asyncio.Task[None]] = set()
        # Whether a write call is in progress: one is enough.
        self._writing = False
        # Whether the cache is closed.
        self._closed = False
        # Failures since the last successful call.
        self._failed_in_a_row = 0
        # No calls are made before this time.
        self._resume_at = 0.0
        # Failed lookups and writes by kind: error, timeout, corrupt, dropped.
        self.failures = {"error": 0, "timeout": 0, "corrupt": 0, "dropped": 0}

    def look_up(self, key: bytes, lookup: Lookup) -> bool:
        """Start a lookup of `key`; return False if it is a miss already."""
        if self._waiting >= WAITING_MAX or not self._available():
            return False
        batches = self._batches
        if not batches or len(batches[-1].keys) >= KEYS_MAX:
            batch = _Batch()
            batch.timer = self._loop.call_later(self._timeout_s, self._late, batch)
            batches.append(batch)
        batches[-1].keys.append(_name(key))
        batches[-1].lookups.append(lookup)
        self._waiting += 1
        self._send_soon()
        return True

    def store(self, key: bytes, value: bytes, ttl_s: int) -> None:
        """Write `value` soon, if possible."""
        if len(value) > VALUE_BYTES_MAX or not self._available():
            return
        full = len(self._writes) >= WRITES_MAX or self._write_bytes + len(value) > WRITE_BYTES_MAX
        if full or key in self._writes:
            self.failures["dropped"] += full
            return
        ttl_ms = int(ttl_s * 1000 * uniform(1 - JITTER, 1 + JITTER))  # noqa: S311
        self._writes[key] = (ttl_ms, value)
        self._write_bytes += len(value)
        self._send_soon()

    async def close(self) -> None:
        """Cancel all calls and close the connections."""
        self._closed = True
        self._give_up()
        for call in list(self._calls):
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        await self._client.aclose()  # type: ignore[attr-defined]

    # --- one turn ------------------------------------------------------------------------------

    def _send_soon(self) -> None:
        # One turn later, so that other lookups of this turn join the call.
        if not self._due:
            self._due = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._due = False
        if not self._available():
            self._give_up()
        while self._batches and len(self._calls) < CALLS_MAX:
            batch = self._batches.pop(0)
            self._waiting -= len(batch.keys)
            self._start(self._read(batch))
        if self._writes and not self._writing and len(self._calls) < CALLS_MAX:
            self._writing = True
            self._start(self._write())

    def _start(self, call: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        if self._batches or self._writes:
            self._send_soon()

    async def _read(self, batch: _Batch) -> None:
        try:
            values = await self._client.mget(batch.keys)
        except (redis.RedisError, OSError) as error:
            if batch.lookups:
                self._failed("error", str(error))
        else:
            if batch.lookups:
                self._failed_in_a_row = 0
                batch.end(values)
        finally:
            batch.end(None)

    async def _write(self) -> None:
        try:
            pipeline = self._client.pipeline(transaction=False)
            for key in list(islice(self._writes, KEYS_MAX)):
                ttl_ms, value = self._writes.pop(key)
                self._write_bytes -= len(value)
                pipeline.set(_name(key), value, px=ttl_ms)
            await pipeline.execute()
            self._failed_in_a_row = 0
        except (redis.RedisError, OSError) as error:
            self._failed("error", str(error))
        finally:
            self._writing = False

    # --- when Redis does not respond -----------------------------------------------------------

    def _available(self) -> bool:
        if self._closed:
            return False
        if self._failed_in_a_row < FAILURES_MAX:
            return True
        # One call tries again.
        return not self._calls and monotonic() >= self._resume_at

    def _late(self, batch: _Batch) -> None:
        batch.timer = None
        if batch in self._batches:
            self._batches.remove(batch)
            self._waiting -= len(batch.keys)
        self._failed("timeout", f"no answer within {self._timeout_s * 1000:.0f} ms")
        batch.end(None)

    def _give_up(self) -> None:
        batches, self._batches, self._waiting = self._batches, [], 0
        for batch in batches:
            batch.end(None)
        self.failures["dropped"] += len(self._writes)
        self._writes, self._write_bytes = {}, 0

    def _failed(self, kind: str, reason: str) -> None:
        self.failures[kind] += 1
        self._failed_in_a_row += 1
        beyond = self._failed_in_a_row - FAILURES_MAX
        if beyond < 0:
            return
        if beyond == 0:
            log.warning("cache.shared: paused: %s", reason)
        back_off_s = min(BACK_OFF_MAX_S, BACK_OFF_MIN_S * 2 ** min(beyond, 10))
        self._resume_at = monotonic() + back_off_s


def shared_client(url: str) -> redis.Redis[bytes]:
    """Return a client that does not retry and has short timeouts."""
    return redis_client.connect(
        url, timeout_s=CALL_TIMEOUT_S, connections_max=CALLS_MAX + 1, tries_again=False
    )


def _name(key: bytes) -> bytes:
    return PREFIX + key.hex().encode()
