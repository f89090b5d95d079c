"""Says in Redis which table is the newest, so that pollers who have it cost PostgreSQL nothing.

A publication writes it after its commit, before the message that wakes pollers, and never over a
newer one; a reader writes what PostgreSQL says only where nothing stands; and all of it lapses
after KEPT_MS. So whoever is woken meets the new tag: an abort is not delayed. Where the write is
lost, so is the message, and the table is pulled a poll interval and KEPT_MS later at the latest.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import lru_cache
from typing import Any

import redis
from django.conf import settings

from apps.lib import redis_client
from apps.rollouts.models import PublishedTable
from contract.routing import CHANNEL

log = logging.getLogger(__name__)

KEY = "interlock:routing-table:newest"
KEPT_MS = 1_000
TIMEOUT_S = 0.5
# Two publications may announce themselves in the other order than they were committed in.
SET_NEWER = """
    local stands = redis.call('GET', KEYS[1])
    local number = stands and tonumber(string.match(stands, '^%d+'))
    if not number or tonumber(ARGV[1]) >= number then
        redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
    end
"""


def announce(generation: int, tag: str) -> None:
    """Tell Redis, and those who listen, of a table that was committed. Raises nothing."""
    try:
        client = _client_of(settings.REDIS_URL)
        client.eval(SET_NEWER, 1, KEY, generation, tag, KEPT_MS)
        client.publish(CHANNEL, str(generation))
    except redis.RedisError as error:
        # A lost nudge costs one poll interval.
        log.warning("table.nudge_failed generation=%d %s", generation, error)


def newest_tag() -> str | None:
    """Return the tag of the newest table; None before the first one.

    It is read from PostgreSQL where Redis does not know it.
    """
    if (tag := _tag_in_redis()) is not None:
        return tag
    newest = PublishedTable.objects.order_by("-generation").only("generation", "digest").first()
    if newest is None:
        return None
    # Where it fails whoever asks next reads PostgreSQL as well.
    with suppress(redis.RedisError):
        _client_of(settings.REDIS_URL).set(KEY, newest.tag, px=KEPT_MS, nx=True)
    return newest.tag


def _tag_in_redis() -> str | None:
    try:
        tag = _client_of(settings.REDIS_URL).get(KEY)
    except redis.RedisError:
        return None
    return str(tag, "ascii") if tag is not None else None


@lru_cache(maxsize=1)
def _client_of(url: str) -> Any:
    # A poll waits for this.
    return redis_client.connect(timeout_s=TIMEOUT_S)
