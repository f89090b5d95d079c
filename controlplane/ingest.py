"""Moves batches of the data plane from Redis streams into PostgreSQL, with effects exactly once.

Delivery is at least once. The rows of a batch and its key in `IngestedBatch` are written in one
transaction, and an entry leaves its stream only after that transaction has committed. A crash at
any point repeats a delivery, and the key makes the repetition a no-op. An entry that cannot be
applied moves to `DEAD` with the reason, so that it does not block others. An entry without a valid
seal of its sender moves to `REFUSED` and is counted (`signature_checks`).
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
# The limit of either stream in bytes: one batch may have a megabyte.
DEAD_BYTES_MAX = 64 * 1024 * 1024
# The stream of the last refused entries, for inspection.
REFUSED = "interlock:refused"
REFUSED_ENTRIES_MAX = 1_000
# The number of entries that a turn reads from each stream. With a backlog of small entries it
# grows, as a transaction costs about the same for one entry as for many.
READ_COUNT = 100
READ_COUNT_MAX = 2_000
# The maximum bytes of one transaction: bounds the transaction and this process's memory.
APPLY_BYTES = 4_000_000
BLOCK_MS = 1_000
# A consumer with an entry unacknowledged for this time counts as dead.
CLAIM_IDLE_MS = 30_000
CLAIM_EVERY_S = 10.0
# A consumer without entries that was idle for this time is removed from the group.
FORGET_IDLE_MS = 3_600_000
PULSE_EVERY_S = 1.0
BACK_OFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)
# Errors that a batch causes on every attempt: values that no column or date can hold.
POISON = (DataError, IntegrityError, ValueError, ArithmeticError)

# An entry's id and fields; the fields are None if it was deleted while it was pending.
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
    """A stream entry with its decoded batch."""

    id: bytes
    data: bytes
    batch: Batch

    @property
    def key(self) -> tuple[str, str, int]:
        return self.batch.instance, self.batch.boot, self.batch.sequence


def connect() -> redis.Redis[bytes]:
    """Return a client whose timeout is longer than a blocking read, but ends a hanging one."""
    return redis_client.connect(timeout_s=BLOCK_MS / 1_000 + 4, connect_timeout_s=2)


class Ingester:
    """One consumer of the group: `turn` reads and applies once, `run` repeats until stopped."""

    def __init__(
        self, client: redis.Redis[bytes], consumer: str, *, block_ms: int = BLOCK_MS
    ) -> None:
        self.client = client
        self.consumer = consumer
        self.block_ms = block_ms
        # Entries delivered to this consumer but not acknowledged come before new ones.
        self._has_pending = True
        self._has_groups = False
        self._next_claim = 0.0
        self._next_pulse = 0.0
        self._failures = 0
        self._read_count = READ_COUNT
        self._seals = SealChecks()

    def run(self, stop: Event) -> None:
        """Take turns until `stop` is set; a failed turn loses nothing and is retried later."""
        while not stop.is_set():
            try:
                self.turn()
                self._record_pulse()
            except Exception as error:
                # The entries are still pending after any error, so waiting loses nothing.
                stop.wait(self._back_off(error))
            else:
                if self._failures:
                    logger.info("ingest.resumed after %d failed turns", self._failures)
                self._failures = 0

    def _record_pulse(self) -> None:
        if monotonic() >= self._next_pulse:
            record_pulse("ingest")
            self._next_pulse = monotonic() + PULSE_EVERY_S

    def turn(self) -> int:
        """Read once, apply and acknowledge; return the number of entries read.

        Raises:
            redis.RedisError, django.db.DatabaseError: the entries stay pending and are read again.
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
        # Redis may have lost its data, and the groups with it.
        self._has_groups = False
        self._failures += 1
        delay_s = BACK_OFF_S[min(self._failures, len(BACK_OFF_S)) - 1]
        is_expected = isinstance(error, (redis.RedisError, Error))
        logger.warning(
            "ingest.failed, retry in %.1f s: %s", delay_s, error, exc_info=not is_expected
        )
        if isinstance(error, Error):
            # After any database error: a session of a demoted server stays read-only for ever.
            connection.close()
        return delay_s

    def _prepare(self) -> None:
        if not self._has_groups:
            for stream in STREAMS:
                self._create_group(stream)
            self._has_groups = True
        if monotonic() >= self._next_claim:
            for stream in STREAMS:
                self._adopt(stream)
            self._next_claim = monotonic() + CLAIM_EVERY_S

    def _create_group(self, stream: str) -> None:
        try:
            self.client.xgroup_create(stream, GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def _adopt(self, stream: str) -> None:
        """Claim the entries of dead consumers; remove consumers without entries."""
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
        # RESP3 returns a mapping of streams to lists of lists, RESP2 a list of pairs.
        pairs = [(s, e[0]) for s, e in answer.items()] if isinstance(answer, dict) else answer
        reads = [(stream.decode(), entries) for stream, entries in pairs or [] if entries]
        if self._has_pending and not reads:
            self._has_pending = False
        return reads

    def _adapt(self, reads: Sequence[tuple[str, Sequence[RawEntry]]]) -> None:
        """Double the read count if a read was full of small entries; halve it otherwise."""
        is_full = any(len(entries) >= self._read_count for _, entries in reads)
        is_large = any(size_of(entries) > APPLY_BYTES for _, entries in reads)
        if is_full and not is_large:
            self._read_count = min(2 * self._read_count, READ_COUNT_MAX)
        else:
            self._read_count = max(self._read_count // 2, READ_COUNT)

    def _handle(self, stream: str, raw: Sequence[RawEntry]) -> None:
        entries: list[Entry] = []
        deleted: list[bytes] = []
        refused: list[tuple[bytes, bytes, Refused]] = []
        for entry_id, fields in raw:
            if fields is None:
                # The entry was deleted from the stream while it was pending.
                deleted.append(entry_id)
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
        self._settle(stream, [*deleted, *(entry.id for entry in entries)])

    def _apply(self, stream: str, entries: list[Entry]) -> None:
        """Apply all entries in one transaction; if one cannot be stored, apply them one by one."""
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
        """Count refused entries and move the last of them from their stream to `REFUSED`."""
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
        """Return the number of entries, at their current average size, that `stream` may hold."""
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
    """Split entries into parts of at most `APPLY_BYTES`; a larger entry is a part of its own."""
    start = size = 0
    for place, entry in enumerate(raw):
        size += size_of([entry])
        if size > APPLY_BYTES and place > start:
            yield raw[start:place]
            start, size = place, size_of([entry])
    yield raw[start:]


def decode_entry(stream: str, data: bytes) -> Batch:
    """Decode a stream entry. Raises MessageError, also for lists that belong on another stream."""
    batch = decode_batch(data)
    for other, names in LISTS.items():
        for name in names if other != stream else ():
            if getattr(batch, name):
                raise MessageError(f"carries {name}, which do not belong on {stream}")
    return batch


@transaction.atomic
def apply_once(stream: str, entries: Sequence[Entry]) -> int:
    """Write the rows of batches that are not applied yet; return the number of such batches."""
    # In the order of keys, so that two consumers cannot deadlock.
    by_key = {entry.key: entry.batch for entry in entries}
    keys = sorted(by_key)
    with connection.cursor() as cursor:
        cursor.execute(INSERT_KEYS, [stream, *(list(column) for column in zip(*keys, strict=True))])
        fresh = [by_key[row] for row in cursor.fetchall()]
    if fresh:
        APPLY[stream](fresh, database_now())
    return len(fresh)
