"""Sends telemetry, exposures and outcomes to the control plane, over Redis streams.

Everything goes to the spool first and from there to Redis, in order, at least once, with (instance,
boot, sequence) on each batch so that the consumer applies it once. While Redis is unavailable the
spool grows up to its limit; further messages are dropped and counted, except outcomes: those are
refused, because their sender was promised that they are kept.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import redis.asyncio as redis

from contract.message_signatures import SEAL_FIELD, Sealer
from contract.messages import (
    FIELD,
    STREAM_EXPOSURES,
    STREAM_OUTCOMES,
    STREAM_TELEMETRY,
    STREAMS,
    Batch,
    Outcome,
    ShadowPair,
    ShadowWindow,
    encode_batch,
)
from dataplane.heartbeat import Heartbeat
from dataplane.outcome_refusals import Refusals
from dataplane.spool import Record, Spool, SpoolFull
from dataplane.telemetry import Telemetry

log = logging.getLogger("interlock.dataplane")

WINDOWS_PER_BATCH = 500
EXPOSURES_PER_BATCH = 1_000
SKETCHES_PER_BATCH = 50
OUTCOMES_PER_BATCH = 1_000
OUTCOMES_WAITING_MAX = 20_000
# Redis memory of one stream. Above it the oldest entries are removed, but never outcomes: those
# wait in the spool, until it is full and they are refused. A consumer that is so far behind has
# been down for long.
STREAM_BYTES_MAX = 256 * 1024 * 1024
# Seconds that a loop may wait for work before it turns anyway, to show that it is alive.
IDLE_S = 5.0


class OutcomesRefused(Exception):
    """Outcomes that could not be stored; the message gives the reason."""


@dataclass(frozen=True)
class _Waiting:
    outcomes: list[Outcome]
    stored: asyncio.Future[None]


class Publisher:
    """Owns the spool and the connection that empties it."""

    def __init__(
        self,
        spool: Spool,
        client: redis.Redis[bytes],
        telemetry: Telemetry,
        *,
        instance: str,
        boot: str,
        interval_s: float,
        generation: Callable[[], int],
        shadows: Callable[[], list[ShadowWindow]] = list,
        pairs: Callable[[], list[ShadowPair]] = list,
        stream_bytes_max: int = STREAM_BYTES_MAX,
        sealer: Sealer | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        # The messages on disk.
        self._spool = spool
        # The Redis that they are sent to.
        self._redis = client
        # Collects windows and exposures between two turns.
        self._telemetry = telemetry
        # The instance in each batch.
        self._instance = instance
        # The boot in each batch.
        self._boot = boot
        # Seconds between two drains of the telemetry.
        self._interval_s = interval_s
        # Returns the applied generation.
        self._generation = generation
        # Returns the windows of shadows since the last turn.
        self._shadows = shadows
        # Returns the pairs of answers since the last turn.
        self._pairs = pairs
        # Redis memory of each stream.
        self._stream_bytes_max = stream_bytes_max
        # Signs the batches; without it the control plane may refuse them.
        self._sealer = sealer
        # Raises while nothing may be sent.
        self._check = check
        # Counts of refused outcomes, until they are sent.
        self.refusals = Refusals()
        # The last sequence number, by stream.
        self._sequences = dict.fromkeys(STREAMS, 0)
        # Messages dropped since this boot, by stream.
        self._dropped = dict.fromkeys(STREAMS, 0)
        # Outcomes that wait to be written together with others.
        self._outcomes: list[_Waiting] = []
        # The number of waiting outcomes.
        self._outcomes_waiting = 0
        # Set when outcomes wait.
        self._outcomes_due = asyncio.Event()
        # Set when the spool has something to send.
        self._spooled = asyncio.Event()
        # The loops of `loops`, for readiness and metrics.
        self.heartbeats = [Heartbeat(name) for name in ("telemetry", "outcomes", "sender")]

    def loops(self) -> list[Coroutine[None, None, None]]:
        """Return the loops that must run while the process lives."""
        telemetry, outcomes, sender = self.heartbeats
        return [
            telemetry.run(self.flush_telemetry, self._interval_s),
            outcomes.run(self.store_outcomes, IDLE_S, self._outcomes_due),
            sender.run(self.send_spooled, IDLE_S, self._spooled),
        ]

    @property
    def dropped(self) -> dict[str, int]:
        """Messages dropped since this boot, by stream."""
        lost = self._telemetry.dropped
        return {
            STREAM_TELEMETRY: self._dropped[STREAM_TELEMETRY] + lost["windows"],
            STREAM_EXPOSURES: self._dropped[STREAM_EXPOSURES]
            + lost["exposures"]
            + lost["measurements"],
            STREAM_OUTCOMES: self._dropped[STREAM_OUTCOMES],
        }

    @property
    def spool_bytes(self) -> int:
        return self._spool.size_bytes

    def accept(self, outcomes: list[Outcome]) -> asyncio.Future[None]:
        """Return a future that is done once `outcomes` are on disk, or has OutcomesRefused."""
        stored = asyncio.get_running_loop().create_future()
        if self._outcomes_waiting + len(outcomes) > OUTCOMES_WAITING_MAX:
            stored.set_exception(OutcomesRefused("too many outcomes wait to be stored"))
            return stored
        self._outcomes_waiting += len(outcomes)
        self._outcomes.append(_Waiting(outcomes, stored))
        self._outcomes_due.set()
        return stored

    async def flush_telemetry(self, *, is_last: bool = False) -> None:
        """Move the collected telemetry to the spool; `is_last` includes what is not due yet."""
        windows, exposures = self._telemetry.drain(self._generation())
        shadows = self._shadows()
        records = [
            self._record(STREAM_TELEMETRY, windows=tuple(windows[i : i + WINDOWS_PER_BATCH]))
            for i in range(0, len(windows), WINDOWS_PER_BATCH)
        ]
        records += [
            self._record(STREAM_TELEMETRY, shadows=tuple(shadows[i : i + WINDOWS_PER_BATCH]))
            for i in range(0, len(shadows), WINDOWS_PER_BATCH)
        ]
        records += [
            self._record(STREAM_EXPOSURES, exposures=tuple(exposures[i : i + EXPOSURES_PER_BATCH]))
            for i in range(0, len(exposures), EXPOSURES_PER_BATCH)
        ]
        measured = self._telemetry.drain_measured()
        records += [
            self._record(
                STREAM_EXPOSURES, measurements=tuple(measured[i : i + EXPOSURES_PER_BATCH])
            )
            for i in range(0, len(measured), EXPOSURES_PER_BATCH)
        ]
        pairs = self._pairs()
        records += [
            self._record(STREAM_EXPOSURES, pairs=tuple(pairs[i : i + EXPOSURES_PER_BATCH]))
            for i in range(0, len(pairs), EXPOSURES_PER_BATCH)
        ]
        sketches = self._telemetry.sketches.drain(is_last=is_last)
        records += [
            self._record(STREAM_EXPOSURES, sketches=tuple(sketches[i : i + SKETCHES_PER_BATCH]))
            for i in range(0, len(sketches), SKETCHES_PER_BATCH)
        ]
        refusals = self.refusals.drain()
        if refusals:
            records.append(self._record(STREAM_OUTCOMES, refusals=refusals))
        if not records:
            return
        try:
            await asyncio.to_thread(self._spool.append, records, durable=False)
        except (SpoolFull, OSError) as error:
            self._dropped[STREAM_TELEMETRY] += len(windows) + len(shadows)
            # A sketch that is lost is sent again with the next change.
            self._dropped[STREAM_EXPOSURES] += len(exposures) + len(measured) + len(pairs)
            log.warning("telemetry.dropped: %s", error)
        self._spooled.set()

    async def send_spooled(self) -> None:
        """Send everything in the spool. Raises redis.RedisError while Redis is unavailable."""
        while (oldest := await asyncio.to_thread(self._spool.oldest)) is not None:
            self._check()
            path, records = oldest
            if records:
                entries_max = await self._entries_max({record.stream for record in records})
                entries = await asyncio.to_thread(self._entries, records)
                async with self._redis.pipeline(transaction=False) as pipeline:
                    for stream, fields in entries:
                        pipeline.xadd(stream, fields, maxlen=entries_max[stream], approximate=True)
                    await pipeline.execute()
            await asyncio.to_thread(self._spool.remove, path)

    def _entries(self, records: list[Record]) -> list[tuple[str, dict[Any, Any]]]:
        """Return the stream entries, signed at the time of sending with the current token.

        This process also signs batches that another process left on disk: it vouches for them.
        """
        if self._sealer is None:
            return [(record.stream, {FIELD: record.payload}) for record in records]
        at_ms = int(time.time() * 1_000)
        return [
            (
                each.stream,
                {
                    FIELD: each.payload,
                    SEAL_FIELD: self._sealer.seal(each.stream, each.payload, at_ms),
                },
            )
            for each in records
        ]

    async def _entries_max(self, streams: set[str]) -> dict[str, int | None]:
        """Return the maximum entries of each stream, at their present size; None for no limit.

        Raises redis.RedisError if the stream of outcomes is full: it is never trimmed.
        """
        names = sorted(streams)
        async with self._redis.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.xlen(name)
                # Redis samples a few nodes of the stream, however long it is.
                pipeline.memory_usage(name)
            results = await pipeline.execute()
        entries_max: dict[str, int | None] = {}
        for name, length, used in zip(names, results[::2], results[1::2], strict=True):
            if name == STREAM_OUTCOMES:
                self._check_room(length, used or 0)
            is_cut = name != STREAM_OUTCOMES and length and used
            entries_max[name] = max(1, length * self._stream_bytes_max // used) if is_cut else None
        return entries_max

    def _check_room(self, length: int, used_bytes: int) -> None:
        if used_bytes >= self._stream_bytes_max:
            raise redis.RedisError(
                f"{length} batches of outcomes take {used_bytes} bytes of Redis, of "
                f"{self._stream_bytes_max} allowed; is the ingester running?"
            )

    async def store_outcomes(self) -> None:
        """Write the waiting outcomes to disk together, and notify their senders."""
        waiting, self._outcomes = self._outcomes, []
        if not waiting:
            return
        self._outcomes_waiting = 0
        # Many requests share one batch: a batch per outcome would cost the consumer more.
        outcomes = [outcome for item in waiting for outcome in item.outcomes]
        records = [
            self._record(STREAM_OUTCOMES, outcomes=tuple(outcomes[i : i + OUTCOMES_PER_BATCH]))
            for i in range(0, len(outcomes), OUTCOMES_PER_BATCH)
        ]
        failure: OutcomesRefused | None = None
        try:
            await asyncio.to_thread(self._spool.append, records, durable=True)
        except (SpoolFull, OSError) as error:
            failure = OutcomesRefused(str(error))
        for item in waiting:
            if item.stored.done():
                continue
            if failure is None:
                item.stored.set_result(None)
            else:
                item.stored.set_exception(failure)
        self._spooled.set()

    def _record(self, stream: str, **content: object) -> Record:
        self._sequences[stream] += 1
        batch = Batch(
            instance=self._instance,
            boot=self._boot,
            sequence=self._sequences[stream],
            **content,  # type: ignore[arg-type]
        )
        return Record(stream, encode_batch(batch))
