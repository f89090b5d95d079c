"""Moves what the data plane sent over Redis streams into PostgreSQL, exactly once in effect.

Delivery is at least once. The rows of a batch and its key in `IngestedBatch` are written in one
transaction, and an entry leaves its stream only after that transaction committed: a crash at any
instant repeats a delivery, and the key turns the repetition into nothing. An entry that can never
be applied goes to `DEAD` with the reason, so that it stops nobody; one whose sender is not believed
goes to `REFUSED`, and is counted (`seal_checks`).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from threading import Event
from time import monotonic
from typing import Any

import redis
from django.db import DataError, Error, IntegrityError, connection, transaction

from apps.experiments.backlog import DEAD, GROUP
from apps.experiments.ingestion import apply_exposures, apply_outcomes
from apps.identity.refusals import Counts, count_refusals
from apps.lib import redis_client
from apps.lib.clock import database_now
from apps.rollouts.ingestion import apply_windows
from contract.message_signatures import SEAL_FIELD
from contract.messages import (
    FIELD,
    STREAM_EXPOSURES,
    STREAM_OUTCOMES,
    STREAM_TELEMETRY,
    STREAMS,
    Batch,
    MessageError,
    decode_batch,
)
from controlplane.loop_health import record_pulse
from controlplane.signature_checks import Refused, SealChecks

logger = logging.getLogger(__name__)

DEAD_ENTRIES_MAX = 10_000
# And no more than so many bytes of either: a batch may be a megabyte.
DEAD_BYTES_MAX = 64 * 1024 * 1024
# Where the last entries are that were refused, so that somebody can look at them.
REFUSED = "interlock:refused"
REFUSED_ENTRIES_MAX = 1_000
# Entries that a turn reads of each stream. Behind a backlog of small ones more are read, since a
# transaction costs the same for one as for many.
READ_COUNT = 100
READ_COUNT_MAX = 2_000
# What a transaction applies at most, so that neither it nor this process grows without end.
APPLY_BYTES = 4_000_000
BLOCK_MS = 1_000
# A consumer that left an entry unacknowledged for so long is taken for dead.
CLAIM_IDLE_MS = 30_000
CLAIM_EVERY_S = 10.0
# A consumer without entries that was silent for so long is forgotten by the group.
FORGET_IDLE_MS = 3_600_000
PULSE_EVERY_S = 1.0
BACK_OFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)
# What a batch itself causes, whenever it is tried: values that no column or date can hold.
POISON = (DataError, IntegrityError, ValueError, ArithmeticError)

# An entry's id and fields; None for one that was deleted from its stream while it was pending.
RawEntry = tuple[bytes, dict[bytes, bytes] | None]
Apply = Callable[[Sequence[Batch], datetime], object]
APPLY: dict[str, Apply] = {
    STREAM_TELEMETRY: apply_windows,
    STREAM_EXPOSURES: apply_exposures,
    STREAM_OUTCOMES: apply_outcomes,
}
LISTS = {
    STREAM_TELEMETRY: ("windows", "shadows"),
    STREAM_EXPOSURES: ("exposures", "measurements", "sketches", "pairs"),
    STREAM_OUTCOMES: ("outcomes", "refusals"),
}

INSERT_KEYS = """
    INSERT INTO rollouts_ingestedbatch (stream, instance, boot, sequence, at)
    SELECT %s, instance, boot, sequence, clock_timestamp()
    FROM unnest(%s::text[], %s::text[], %s::bigint[]) AS key(instance, boot, sequence)
    ON CONFLICT DO NOTHING
    RETURNING instance, boot, sequence
"""


@dataclass(frozen=True)
class Entry:
    """One stream entry with the batch that it carries."""

    id: bytes
    data: bytes
    batch: Batch

    @property
    def key(self) -> tuple[str, str, int]:
        return self.batch.instance, self.batch.boot, self.batch.sequence


def connect() -> redis.Redis[bytes]:
    """Return a client whose reads outlast a blocking read, and end when Redis hangs."""
    return redis_client.connect(timeout_s=BLOCK_MS / 1_000 + 4, connect_timeout_s=2)


class Ingester:
    """One consumer of the group: `turn` reads and applies once, `run` until told to stop."""

    def __init__(
        self, client: redis.Redis[bytes], consumer: str, *, block_ms: int = BLOCK_MS
    ) -> None:
        self.client = client
        self.consumer = consumer
        self.block_ms = block_ms
        # Entries that were delivered to us and not acknowledged come before new ones.
        self._has_pending = True
        self._has_groups = False
        self._next_claim = 0.0
        self._next_pulse = 0.0
        self._failures = 0
        self._read_count = READ_COUNT
        self._seals = SealChecks()

    def run(self, stop: Event) -> None:
        """Take turns until `stop` is set; a failed turn loses nothing and is tried again later."""
        while not stop.is_set():
            try:
                self.turn()
                self._show_life()
            except Exception as error:
                # Whatever it was, the entries are still pending: nothing is lost by waiting.
                stop.wait(self._back_off(error))
            else:
                if self._failures:
                    logger.info("ingest.resumed after %d failed turns", self._failures)
                self._failures = 0

    def _show_life(self) -> None:
        if monotonic() >= self._next_pulse:
            record_pulse("ingest")
            self._next_pulse = monotonic() + PULSE_EVERY_S

    def turn(self) -> int:
        """Read once, apply and acknowledge; return how many entries left their streams.

        Raises:
            redis.RedisError, django.db.DatabaseError: the entries stay pending and come again.
        """
        self._prepare()
        reads = self._read()
        for stream, entries in reads:
            for part in in_parts(entries):
                self._handle(stream, part)
        self._adapt(reads)
        return sum(len(entries) for _, entries in reads)

    def _back_off(self, error: Exception) -> float:
        self._has_pending = True
        # A Redis that lost its data has lost the groups with it.
        self._has_groups = False
        self._failures += 1
        delay_s = BACK_OFF_S[min(self._failures, len(BACK_OFF_S)) - 1]
        known = isinstance(error, (redis.RedisError, Error))
        logger.warning("ingest.failed, again in %.1f s: %s", delay_s, error, exc_info=not known)
        if isinstance(error, Error):
            # Whatever it says: a session of a server that was demoted stays read-only for good.
            connection.close()
        return delay_s

    def _prepare(self) -> None:
        if not self._has_groups:
            for stream in STREAMS:
                self._make_group(stream)
            self._has_groups = True
        if monotonic() >= self._next_claim:
            for stream in STREAMS:
                self._adopt(stream)
            self._next_claim = monotonic() + CLAIM_EVERY_S

    def _make_group(self, stream: str) -> None:
        try:
            self.client.xgroup_create(stream, GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def _adopt(self, stream: str) -> None:
        """Take over what dead consumers left, and forget those that left nothing."""
        start: Any = "0-0"
        while True:
            claimed: Any = self.client.xautoclaim(
                stream, GROUP, self.consumer, CLAIM_IDLE_MS, start, count=READ_COUNT, justid=False
            )
            if claimed[1]:
                self._has_pending = True
                logger.info("ingest.adopted %d entries of %s", len(claimed[1]), stream)
            start = claimed[0]
            if start in (b"0-0", "0-0"):
                break
        client: Any = self.client
        for other in client.xinfo_consumers(stream, GROUP):
            if other["pending"] == 0 and other["idle"] > FORGET_IDLE_MS:
                client.xgroup_delconsumer(stream, GROUP, other["name"])

    def _read(self) -> list[tuple[str, list[RawEntry]]]:
        position = "0" if self._has_pending else ">"
        answer: Any = self.client.xreadgroup(
            GROUP,
            self.consumer,
            dict.fromkeys(STREAMS, position),
            count=self._read_count,
            block=self.block_ms,
        )
        # RESP3 answers a mapping of streams to lists of lists, RESP2 a list of pairs.
        pairs = [(s, e[0]) for s, e in answer.items()] if isinstance(answer, dict) else answer
        reads = [(stream.decode(), entries) for stream, entries in pairs or [] if entries]
        if self._has_pending and not reads:
            self._has_pending = False
        return reads

    def _adapt(self, reads: Sequence[tuple[str, Sequence[RawEntry]]]) -> None:
        """Read more where that many small entries waited, and less when they do not."""
        is_full = any(len(entries) >= self._read_count for _, entries in reads)
        is_large = any(size_of(entries) > APPLY_BYTES for _, entries in reads)
        if is_full and not is_large:
            self._read_count = min(2 * self._read_count, READ_COUNT_MAX)
        else:
            self._read_count = max(self._read_count // 2, READ_COUNT)

    def _handle(self, stream: str, raw: Sequence[RawEntry]) -> None:
        entries: list[Entry] = []
        gone: list[bytes] = []
        refused: list[tuple[bytes, bytes, Refused]] = []
        for entry_id, fields in raw:
            if fields is None:
                # It was deleted from the stream while it was pending.
                gone.append(entry_id)
                continue
            data = fields.get(FIELD, b"")
            try:
                seal = self._seals.check(stream, data, fields.get(SEAL_FIELD))
                batch = decode_entry(stream, data)
                self._seals.check_batch(seal, batch)
                entries.append(Entry(entry_id, data, batch))
            except Refused as refusal:
                refused.append((entry_id, data, refusal))
            except MessageError as error:
                self._bury(stream, entry_id, data, str(error))
        self._refuse(stream, refused)
        self._apply(stream, entries)
        self._settle(stream, [*gone, *(entry.id for entry in entries)])

    def _apply(self, stream: str, entries: list[Entry]) -> None:
        """Apply all in one transaction; if one of them cannot be stored, find it one by one."""
        if not entries:
            return
        try:
            apply_once(stream, entries)
        except POISON as error:
            if len(entries) == 1:
                self._bury(stream, entries[0].id, entries[0].data, f"cannot be stored: {error}")
                return
            for entry in entries:
                self._apply(stream, [entry])

    def _settle(self, stream: str, ids: list[bytes]) -> None:
        if not ids:
            return
        pipe = self.client.pipeline(transaction=True)
        pipe.xack(stream, GROUP, *ids)
        pipe.xdel(stream, *ids)
        pipe.execute()

    def _refuse(self, stream: str, refused: Sequence[tuple[bytes, bytes, Refused]]) -> None:
        """Count what is not believed, keep the last of it aside, and take it off its stream."""
        if not refused:
            return
        counts: Counts = Counter(
            (each.instance, stream, str(each.reason)) for _, _, each in refused
        )
        logger.warning("ingest.refused %s", dict(counts))
        count_refusals(counts)
        entries_max = self._kept_max(REFUSED, REFUSED_ENTRIES_MAX)
        pipe = self.client.pipeline(transaction=True)
        for _, data, refusal in refused[-entries_max:]:
            fields: dict[Any, Any] = {"stream": stream, "reason": str(refusal.reason), FIELD: data}
            pipe.xadd(REFUSED, fields, maxlen=entries_max, approximate=True)
        ids = [entry_id for entry_id, _, _ in refused]
        pipe.xack(stream, GROUP, *ids)
        pipe.xdel(stream, *ids)
        pipe.execute()

    def _bury(self, stream: str, entry_id: bytes, data: bytes, reason: str) -> None:
        logger.error("ingest.dead_letter %s %s: %s", stream, entry_id.decode(), reason)
        fields: dict[Any, Any] = {
            "stream": stream,
            "id": entry_id,
            "reason": reason[:1_000],
            FIELD: data,
        }
        entries_max = self._kept_max(DEAD, DEAD_ENTRIES_MAX)
        pipe = self.client.pipeline(transaction=True)
        pipe.xadd(DEAD, fields, maxlen=entries_max, approximate=True)
        pipe.xack(stream, GROUP, entry_id)
        pipe.xdel(stream, entry_id)
        pipe.execute()

    def _kept_max(self, stream: str, entries_max: int) -> int:
        """Return how many entries of their present size are kept aside; the oldest goes first."""
        pipe = self.client.pipeline(transaction=False)
        pipe.xlen(stream)
        pipe.memory_usage(stream)
        length, used = pipe.execute()
        if not length or not used:
            return entries_max
        return max(1, min(entries_max, int(length) * DEAD_BYTES_MAX // int(used)))


def size_of(raw: Sequence[RawEntry]) -> int:
    return sum(len(fields.get(FIELD, b"")) for _, fields in raw if fields)


def in_parts(raw: Sequence[RawEntry]) -> Iterator[Sequence[RawEntry]]:
    """Cut what was read into parts of at most `APPLY_BYTES`, or of one entry."""
    start = size = 0
    for place, entry in enumerate(raw):
        size += size_of([entry])
        if size > APPLY_BYTES and place > start:
            yield raw[start:place]
            start, size = place, size_of([entry])
    yield raw[start:]


def decode_entry(stream: str, data: bytes) -> Batch:
    """Return a stream entry's batch. Raises MessageError, also for a list of another stream."""
    batch = decode_batch(data)
    for other, names in LISTS.items():
        for name in names if other != stream else ():
            if getattr(batch, name):
                raise MessageError(f"carries {name}, which do not belong on {stream}")
    return batch


@transaction.atomic
def apply_once(stream: str, entries: Sequence[Entry]) -> int:
    """Write the rows of the batches that were not applied before; return how many those were."""
    # In the order of keys, so that two consumers never wait for each other crosswise.
    by_key = {entry.key: entry.batch for entry in entries}
    keys = sorted(by_key)
    with connection.cursor() as cursor:
        cursor.execute(INSERT_KEYS, [stream, *(list(column) for column in zip(*keys, strict=True))])
        fresh = [by_key[row] for row in cursor.fetchall()]
    if fresh:
        APPLY[stream](fresh, database_now())
    return len(fresh)
