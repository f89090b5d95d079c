"""The second tier: answers in Redis, which the instances share. Whatever goes wrong is a miss.

All look-ups of one turn of the loop travel in one call, and so do all writes. A look-up ends at
its own small deadline, whether Redis answered or not. After a few failures in a row nothing is
asked for a while, so that a dead Redis costs nothing. Nobody waits for a write.
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
# Calls under way at once; look-ups that come meanwhile go into the next one.
CALLS_MAX = 4
# Keys that one call asks for, and writes that one call carries.
KEYS_MAX = 256
# Look-ups that may wait for a call; beyond it a look-up is a miss at once.
WAITING_MAX = 4_096
# Writes that may wait; beyond these they are given up.
WRITES_MAX = 1_024
WRITE_BYTES_MAX = 8 * 1024 * 1024
# A value beyond this is not worth its way.
VALUE_BYTES_MAX = 1024 * 1024
# Failures in a row after which nothing is asked for a while.
FAILURES_MAX = 3
BACK_OFF_MIN_S = 0.25
BACK_OFF_MAX_S = 5.0
# Lifetimes vary by this part, so that what was stored together does not end together.
JITTER = 0.1
# A call may outlive the look-ups that it was made for: a connection takes its time to open.
CALL_TIMEOUT_S = 1.0


class Lookup(Protocol):
    """Whoever waits for a value; called exactly once, with None for a miss."""

    def brought(self, value: bytes | None) -> None: ...


class _Batch:
    """The look-ups of one call."""

    __slots__ = ("keys", "lookups", "timer")

    def __init__(self) -> None:
        # What to ask for, with its prefix.
        self.keys: list[bytes] = []
        # Who asks, in the same order; empty once they were answered.
        self.lookups: list[Lookup] = []
        # Ends the waiting.
        self.timer: asyncio.TimerHandle | None = None

    def end(self, values: list[bytes | None] | None) -> None:
        """Answer everybody; None for misses all over."""
        if self.timer is not None:
            self.timer.cancel()
        lookups, self.lookups = self.lookups, []
        for i, lookup in enumerate(lookups):
            try:
                lookup.brought(values[i] if values is not None else None)
            except Exception:
                # The others of the call still wait.
                log.exception("a look-up could not be ended")


class SharedCache:
    """Values by key in Redis."""

    def __init__(
        self, client: redis.Redis[bytes], loop: asyncio.AbstractEventLoop, timeout_s: float
    ) -> None:
        # A client of its own: telemetry must not wait behind answers.
        self._client = client
        # Runs timers and calls.
        self._loop = loop
        # A look-up takes no longer.
        self._timeout_s = timeout_s
        # The batch that still fills, and those that wait for a place.
        self._batches: list[_Batch] = []
        # Look-ups in them.
        self._waiting = 0
        # Writes that wait: the lifetime in ms and the value, by key.
        self._writes: dict[bytes, tuple[int, bytes]] = {}
        # The sum of their lengths.
        self._write_bytes = 0
        # A turn that sends is due.
        self._due = False
        # Calls under way, referenced so that they are not collected.
        self._calls: set[asyncio.Task[None]] = set()
        # A write is among them: one is enough.
        self._writing = False
        # Nothing is asked any more.
        self._closed = False
        # Failures since the last call that went well.
        self._failed_in_a_row = 0
        # Until then nothing is asked.
        self._resume_at = 0.0
        # Failed look-ups and writes by kind: error, timeout, corrupt, dropped.
        self.failures = {"error": 0, "timeout": 0, "corrupt": 0, "dropped": 0}

    def ask(self, key: bytes, lookup: Lookup) -> bool:
        """Look `key` up for `lookup`; False when it is a miss already."""
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
        """Write `value` some time soon, if that is possible."""
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
        """End all calls and close the connections."""
        self._closed = True
        self._give_up()
        for call in list(self._calls):
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        await self._client.aclose()  # type: ignore[attr-defined]

    # --- one turn ------------------------------------------------------------------------------

    def _send_soon(self) -> None:
        # One turn later: whatever else is asked in this turn goes along.
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

    # --- when Redis does not answer ------------------------------------------------------------

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
            log.warning("cache.shared: does without for now: %s", reason)
        back_off_s = min(BACK_OFF_MAX_S, BACK_OFF_MIN_S * 2 ** min(beyond, 10))
        self._resume_at = monotonic() + back_off_s


def shared_client(url: str) -> redis.Redis[bytes]:
    """Return a client that tries once and never waits for long."""
    return redis_client.connect(
        url, timeout_s=CALL_TIMEOUT_S, connections_max=CALLS_MAX + 1, tries_again=False
    )


def _name(key: bytes) -> bytes:
    return PREFIX + key.hex().encode()
