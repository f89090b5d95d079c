"""Reports which loops of the control plane run: each successful turn records a pulse in Redis.

Redis dates the pulses by its own clock, and the web process reads them for pages, health, metrics
and API, so that no loop is needed to report a stopped one. Without Redis no loop runs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import redis
from django.apps import apps
from django.conf import settings

from apps.lib import redis_client
from apps.lib.clock import database_now

log = logging.getLogger(__name__)

KEY = "interlock:pulse:"
TIMEOUT_S = 0.5
STARTED_AT = time.monotonic()
# A loop is late after this number of its periods, or after LOOP_LATE_S if that is longer.
PERIODS_MAX = 6


@dataclass(frozen=True)
class Loop:
    """A loop: its name, the task or process that runs it, and the effect while it is stopped."""

    name: str
    turned_by: str
    period_s: float
    without_it: str

    @property
    def late_after_s(self) -> float:
        return max(settings.LOOP_LATE_S, PERIODS_MAX * self.period_s)


LOOPS = (
    Loop("tick", "rollouts.tick", 1.0, "no rollout moves, and no check is evaluated"),
    Loop("deployments", "models.reconcile_deployments", 1.0, "no version is loaded or unloaded"),
    Loop("results", "experiments.refresh_results", 5.0, "experiment results are not updated"),
    Loop("sync", "models.sync_registry", 10.0, "new versions are not imported from MLflow"),
    Loop("delivery", "notifications.deliver", 1.0, "notifications are not sent"),
    Loop("retention", "retention.run", 60.0, "expired rows are not deleted: the database grows"),
    Loop("ingest", "ingest", 1.0, "telemetry and outcomes wait in Redis and are not counted"),
)
BY_TURNER = {loop.turned_by: loop for loop in LOOPS}


@dataclass(frozen=True)
class Pulse:
    """A loop and the seconds since its last successful turn; None: Redis has no pulse of it."""

    loop: Loop
    age_s: float | None
    # Whether the last pulse is older than that of any healthy loop.
    is_late: bool


@dataclass(frozen=True)
class Pulses:
    """All loops; `trouble` is the reason if their state is unknown, else empty."""

    loops: tuple[Pulse, ...]
    trouble: str = ""

    @property
    def late(self) -> tuple[Pulse, ...]:
        return tuple(pulse for pulse in self.loops if pulse.is_late)

    @property
    def is_well(self) -> bool:
        return not self.trouble and not self.late


def record_pulse(turned_by: str) -> None:
    """Record a successful turn, if the task belongs to a loop. Logs errors, never raises."""
    loop = BY_TURNER.get(turned_by)
    if loop is None:
        return
    try:
        # A stream entry's id holds the time of Redis, the same clock for all readers.
        _client().xadd(KEY + loop.name, {"v": b""}, maxlen=1, approximate=False)
    except redis.RedisError as error:
        log.info("pulse.lost %s: %s", loop.name, error)


def read_pulses() -> Pulses:
    """Return the state of all loops. Never raises: `trouble` reports an unreachable Redis."""
    try:
        now_ms, marks = _read_marks()
    except redis.RedisError as error:
        # The error contains the address of Redis, so unauthenticated clients must not see it.
        log.warning("pulse.unknown: %s", error)
        return Pulses(tuple(Pulse(loop, None, False) for loop in LOOPS), "Redis is unreachable")
    pulses = (_pulse(loop, mark, now_ms) for loop, mark in zip(LOOPS, marks, strict=True))
    return Pulses(tuple(pulses))


def _pulse(loop: Loop, mark_ms: int | None, now_ms: int) -> Pulse:
    # After a start of this process, a loop has the usual time for its first turn.
    had_time = time.monotonic() - STARTED_AT > loop.late_after_s
    if mark_ms is None:
        return Pulse(loop, None, had_time)
    age_s = max(0.0, (now_ms - mark_ms) / 1_000)
    return Pulse(loop, age_s, had_time and age_s > loop.late_after_s)


def _read_marks() -> tuple[int, Iterable[int | None]]:
    pipe = _client().pipeline(transaction=False)
    for loop in LOOPS:
        pipe.xrevrange(KEY + loop.name, count=1)
    pipe.time()
    *entries, (seconds, microseconds) = pipe.execute()
    marks = [int(rows[0][0].partition(b"-")[0]) if rows else None for rows in entries]
    return seconds * 1_000 + microseconds // 1_000, marks


def published_age_s() -> float | None:
    """Return the seconds since the newest routing table was published; None before the first."""
    # By name: every app may import this module, so it must not import an app's models.
    published = apps.get_model("rollouts", "PublishedTable")
    table = published.objects.order_by("-generation").only("published_at").first()
    return None if table is None else (database_now() - table.published_at).total_seconds()


def _client() -> Any:
    return _client_of(settings.REDIS_URL)


@lru_cache(maxsize=1)
def _client_of(url: str) -> redis.Redis[bytes]:
    # Short, because a page waits for it.
    return redis_client.connect(timeout_s=TIMEOUT_S)
