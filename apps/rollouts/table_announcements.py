"""Caches the tag of the newest table in Redis, so that polls without change need no PostgreSQL.

A publication writes the tag after its commit, before the message that wakes pollers, and never over
a newer one. A reader writes the tag from PostgreSQL only if there is none. The tag expires after
KEPT_MS. So a poller that was woken reads the new tag: an abort is not delayed. If the write is
lost, so is the message: data planes get the table after at most a poll interval plus KEPT_MS.
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
# Two publications may be announced in another order than they were committed.
SET_NEWER = """
    local current = redis.call('GET', KEYS[1])
    local number = current and tonumber(string.match(current, '^%d+'))
    if not number or tonumber(ARGV[1]) >= number then
        redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
    end
"""


def announce(generation: int, tag: str) -> None:
    """Store the tag of a committed table in Redis and wake data planes. Raises nothing."""
    try:
        client = _client_of(settings.REDIS_URL)
        client.eval(SET_NEWER, 1, KEY, generation, tag, KEPT_MS)
        client.publish(CHANNEL, str(generation))
    except redis.RedisError as error:
        # A lost message delays the table by one poll interval.
        log.warning("table.nudge_failed generation=%d %s", generation, error)


def newest_tag() -> str | None:
    """Return the tag of the newest table; None before the first one.

    Read from PostgreSQL if it is not in Redis.
    """
    if (tag := _tag_in_redis()) is not None:
        return tag
    newest = PublishedTable.objects.order_by("-generation").only("generation", "digest").first()
    if newest is None:
        return None
    # If it fails, the next caller reads PostgreSQL as well.
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
    # Polls wait for this client.
    return redis_client.connect(timeout_s=TIMEOUT_S)
