"""Read the ingestion backlog: how many batches wait in Redis streams, and the oldest one's age."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import redis

from apps.lib import redis_client
from contract.messages import STREAM_EXPOSURES, STREAM_OUTCOMES, STREAMS

logger = logging.getLogger(__name__)

# The consumer group, and the stream of entries that can never be applied.
GROUP = "ingest"
DEAD = "interlock:dead"
TIMEOUT_S = 0.5
# Streams that results depend on.
RESULT_STREAMS = (STREAM_EXPOSURES, STREAM_OUTCOMES)


@dataclass(frozen=True)
class StreamBacklog:
    """One stream's entries, those that a consumer has read, and the oldest one's age in seconds."""

    entries: int
    pending: int
    oldest_s: float


@dataclass(frozen=True)
class Backlog:
    """The backlog of each stream; `dead` counts the entries that were given up."""

    streams: dict[str, StreamBacklog]
    dead: int

    def to_result_json(self) -> dict[str, Any]:
        """Return the sum over the streams that results depend on, as stored in a result."""
        streams = [self.streams[stream] for stream in RESULT_STREAMS]
        return {
            "entries": sum(each.entries for each in streams),
            "oldest_s": round(max(each.oldest_s for each in streams), 1),
            "dead": self.dead,
        }


def read_backlog(client: redis.Redis[bytes] | None = None) -> Backlog:
    """Return the current backlog. Raises redis.RedisError.

    An applied entry is deleted from its stream, so every entry of a stream waits. Ages use the
    clock that dated the entries: Redis's own.
    """
    if client is None:
        with redis_client.connect(timeout_s=TIMEOUT_S) as own:
            return read_backlog(own)
    pipe: Any = client.pipeline(transaction=False)
    for stream in STREAMS:
        pipe.xlen(stream)
        pipe.xpending(stream, GROUP)
        pipe.xrange(stream, count=1)
    pipe.time()
    pipe.xlen(DEAD)
    *answers, (seconds, microseconds), dead = pipe.execute(raise_on_error=False)
    now_ms = seconds * 1_000 + microseconds / 1_000
    streams = {}
    for place, stream in enumerate(STREAMS):
        entries, pending, first = answers[3 * place : 3 * place + 3]
        # The group does not exist before the first consumer starts.
        read = pending["pending"] if isinstance(pending, dict) else 0
        oldest_ms = int(first[0][0].partition(b"-")[0]) if first else now_ms
        streams[stream] = StreamBacklog(entries, read, max(0.0, now_ms - oldest_ms) / 1_000)
    return Backlog(streams, dead)


def read_result_backlog() -> dict[str, Any] | None:
    """Return the backlog that results wait for, or None when Redis does not answer."""
    try:
        return read_backlog().to_result_json()
    except redis.RedisError as error:
        logger.warning("backlog.unknown: %s", error)
        return None


def is_ingested(until: datetime, now: datetime) -> bool:
    """Return whether all batches sent before `until` are ingested; False when Redis is away."""
    backlog = read_result_backlog()
    if backlog is None:
        return False
    return not backlog["entries"] or now - timedelta(seconds=backlog["oldest_s"]) >= until
