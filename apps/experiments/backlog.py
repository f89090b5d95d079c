"""What data planes sent and nobody has taken in yet: how many batches wait, and since when."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import redis

from apps.lib import redis_client
from contract.messages import STREAM_EXPOSURES, STREAM_OUTCOMES, STREAMS

logger = logging.getLogger(__name__)

# The consumers, and where they put what can never be applied.
GROUP = "ingest"
DEAD = "interlock:dead"
TIMEOUT_S = 0.5
# What results are made of.
OF_RESULTS = (STREAM_EXPOSURES, STREAM_OUTCOMES)


@dataclass(frozen=True)
class Waiting:
    """Of one stream: its entries, how many of them a consumer has read, the oldest one's age."""

    entries: int
    pending: int
    oldest_s: float


@dataclass(frozen=True)
class Backlog:
    """By stream what waits; `dead` are the entries that had to be given up."""

    streams: dict[str, Waiting]
    dead: int

    def of_results(self) -> dict[str, Any]:
        """Return what waits for results, all of it together, as it stands in one."""
        found = [self.streams[stream] for stream in OF_RESULTS]
        return {
            "entries": sum(each.entries for each in found),
            "oldest_s": round(max(each.oldest_s for each in found), 1),
            "dead": self.dead,
        }


def read_backlog(client: redis.Redis[bytes] | None = None) -> Backlog:
    """Return what waits now. Raises redis.RedisError.

    An applied entry is deleted from its stream, so that all of a stream waits. Ages are taken by
    the clock that dated the entries: Redis's own.
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
        # Before the first consumer came there is no group to ask.
        read = pending["pending"] if isinstance(pending, dict) else 0
        oldest_ms = int(first[0][0].partition(b"-")[0]) if first else now_ms
        streams[stream] = Waiting(entries, read, max(0.0, now_ms - oldest_ms) / 1_000)
    return Backlog(streams, dead)


def backlog_of_results() -> dict[str, Any] | None:
    """Return what waits for results, or None when Redis does not say."""
    try:
        return read_backlog().of_results()
    except redis.RedisError as error:
        logger.warning("backlog.unknown: %s", error)
        return None


def is_taken_in(until: datetime, now: datetime) -> bool:
    """Say whether all that was sent before `until` has been taken in; not when nobody knows."""
    found = backlog_of_results()
    if found is None:
        return False
    return not found["entries"] or now - timedelta(seconds=found["oldest_s"]) >= until
