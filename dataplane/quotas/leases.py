"""Moves tokens between an instance's ledger and the fleet's buckets in Redis.

One worker of an instance does it for all of them: the one that holds the lock of the file beside
the ledger; when it ends, another worker gets the lock. It makes one call every RENEW_S seconds for
all tenants in use, and requests never wait for it. `ledger` describes what holds while calls fail.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import msgspec
import redis.asyncio as redis

from dataplane.quotas.ledger import Ledger, Line
from dataplane.quotas.limits import Limits
from dataplane.quotas.script import SCRIPT

log = logging.getLogger("interlock.dataplane")

KEY = "{interlock:quota}"
RENEW_S = 0.1
# Interval of renewals after a worker ran short and the last renewal granted everything.
SOON_S = 0.02
# Interval of calls of an instance that uses no quota, so that others count it.
HEARD_S = 0.25
# Interval at which an instance without limits checks for new ones.
LOOK_S = 0.5
# Seconds of demand that an instance leases in advance.
AHEAD_S = 0.15
# Seconds without requests after which a tenant's tokens are returned.
IDLE_S = 5.0
CALL_TIMEOUT_S = 0.5
CALLS_MAX = 500
# Factor on past demand at each renewal.
FADE = 0.7


@dataclass(slots=True)
class Account:
    """The leader's state of a line between two renewals."""

    used: float
    unmet: float
    at: float
    demand: float = 0.0
    is_known: bool = False


@dataclass(slots=True)
class Call:
    """The request to Redis for one tenant; see `script`."""

    number: int
    name: str
    limits: Limits
    owed: float
    returned: float
    requested: float
    demand: float
    credit: float
    peak: float
    is_known: bool

    def packed(self) -> tuple[float | bool, ...]:
        return (
            self.limits.rate or 0.0, self.limits.burst, self.owed, self.returned, self.requested,
            self.demand, self.credit, float(self.limits.slots or 0), self.peak, self.is_known,
        )  # fmt: skip


class Leases:
    """Renews the leases of one instance. Raises OSError if its lock cannot be created."""

    def __init__(
        self,
        ledger: Ledger,
        client: redis.Redis[bytes],
        instance: str,
        tenants: Callable[[], dict[int, tuple[str, Limits]]],
        lock: Path,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        # The ledger that the workers share.
        self._ledger = ledger
        # The script on the fleet's buckets.
        self._script = client.register_script(SCRIPT)
        # The instance's name in the fleet.
        self._instance = instance
        # Returns name and limits of the tenants with limits, by line.
        self._tenants = tenants
        # The lock of the worker that renews; None once closed.
        self._lock: int | None = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # Monotonic seconds.
        self._clock = clock
        # Accounts of the active lines.
        self._accounts: dict[int, Account] = {}
        # When the next renewal is due.
        self._due_at = 0.0
        # Whether the last renewal granted everything.
        self._was_enough = True
        # Whether Redis was unavailable at the last renewal; None before the first.
        self._was_away: bool | None = None
        # Set when `run` must end.
        self._is_stopping = False

    def stop(self) -> None:
        """Let `run` end after its turn: a call to Redis was observed to swallow a cancellation."""
        self._is_stopping = True

    def close(self) -> None:
        """Let another worker renew. May be called again."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def run(self) -> None:
        """Renew until stopped, while this worker holds the lock."""
        while not self._is_stopping:
            try:
                await self.turn()
            except Exception:
                log.exception("leases of quotas could not be renewed")
                await asyncio.sleep(RENEW_S)
            await asyncio.sleep(SOON_S if self._tenants() else LOOK_S)

    async def turn(self) -> None:
        """Renew if it is due and this worker holds the lock."""
        if not self._tenants() or not self._leads():
            return
        now = self._clock()
        is_soon = self._was_enough and self._ledger.is_short
        if now >= self._due_at or is_soon:
            # Jitter: not all instances at once.
            self._due_at = now + RENEW_S * random.uniform(0.8, 1.2)  # noqa: S311
            await self.renew()

    def _leads(self) -> bool:
        if self._lock is None:
            return False
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._accounts.clear()
            return False
        return True

    async def renew(self) -> None:
        """Report usage to Redis, return surplus tokens, and lease the tokens in demand."""
        calls = self._calls(self._clock())
        if not calls and self._clock() - self._ledger.renewed_at < HEARD_S:
            return
        keys = [f"{KEY}:instances", *(f"{KEY}:t:{call.name}" for call in calls)]
        packed = msgspec.msgpack.encode([call.packed() for call in calls])
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                instances, data = await self._script(keys=keys, args=[self._instance, packed])
        except (redis.RedisError, OSError, TimeoutError) as error:
            self._away(calls, error)
            return
        self._apply(calls, float(instances), msgspec.msgpack.decode(data))

    # --- the call --------------------------------------------------------------------------------

    def _calls(self, now: float) -> list[Call]:
        ledger, tenants = self._ledger, self._tenants()
        calls: list[Call] = []
        kept: list[int] = []
        with ledger.locked():
            instances = ledger.instances
            for number in dict.fromkeys(ledger.active_lines()):
                line = ledger.read(number)
                tenant = tenants.get(number)
                if now - line.touched_at > IDLE_S:
                    self._accounts.pop(number, None)
                    if tenant is not None:
                        calls.append(self._closing_call(number, *tenant, line))
                    ledger.write(number, Line(used=line.used, unmet=line.unmet))
                    continue
                kept.append(number)
                # Another worker may have a newer table, with a tenant that is unknown here.
                if tenant is not None and len(calls) < CALLS_MAX:
                    calls.append(self._call(number, *tenant, line, instances, now))
                    ledger.write(number, line)
            ledger.keep_active(kept)
        return calls

    def _call(
        self, number: int, name: str, limits: Limits, line: Line, instances: float, now: float
    ) -> Call:
        """Return the call for a line, and take the returned tokens from it."""
        account = self._accounts.get(number)
        if account is None:
            account = self._accounts[number] = Account(line.used, line.unmet, now)
        elapsed_s = max(SOON_S, now - account.at)
        tokens = line.used - account.used + line.unmet - account.unmet
        account.demand = max(tokens / elapsed_s, account.demand * FADE)
        account.used, account.unmet, account.at = line.used, line.unmet, now
        rate = limits.rate or 0.0
        first = max(1.0, limits.burst / instances)
        target = max(first, min(account.demand, rate) * AHEAD_S)
        if self._was_away:
            # Tokens that the instance credited to itself meanwhile were not leased.
            line.owed = max(0.0, line.credit)
        returned = max(0.0, line.credit - target) if limits.rate is not None else 0.0
        line.credit -= returned
        owed, line.owed = line.owed, 0.0
        peak, line.peak = line.peak, 0.0
        requested = max(0.0, target - line.credit) if limits.rate is not None else 0.0
        return Call(
            number, name, limits, owed, returned, requested, account.demand, line.credit, peak,
            account.is_known,
        )  # fmt: skip

    def _closing_call(self, number: int, name: str, limits: Limits, line: Line) -> Call:
        returned = line.credit - line.owed
        return Call(number, name, limits, max(0.0, -returned), max(0.0, returned), 0, 0, 0, 0, True)

    # --- the result ------------------------------------------------------------------------------

    def _apply(self, calls: list[Call], instances: float, answers: list[list[float]]) -> None:
        ledger, now = self._ledger, self._clock()
        was_enough = True
        with ledger.locked():
            for call, (granted, share, slots) in zip(calls, answers, strict=True):
                account = self._accounts.get(call.number)
                if account is None:
                    continue
                account.is_known = True
                line = ledger.read(call.number)
                line.credit += granted
                line.share, line.slots = share, slots
                ledger.write(call.number, line)
                was_enough = was_enough and granted >= call.requested
            ledger.renewed(now, instances)
        self._was_enough = was_enough
        if self._was_away:
            log.info("quotas.leased: Redis is available; quotas hold for the fleet again")
        self._was_away = False

    def _away(self, calls: list[Call], error: Exception) -> None:
        ledger = self._ledger
        with ledger.locked():
            for call in calls:
                # Redis may have received the call: then these tokens are charged twice, but never
                # not at all.
                line = ledger.read(call.number)
                line.owed += call.owed
                ledger.write(call.number, line)
        if not self._was_away and not self._ledger.is_leased(self._clock()):
            self._was_away = True
            log.warning(
                "quotas.shared: Redis does not respond (%s: %s); this instance enforces 1/%.0f "
                "of each quota by itself",
                type(error).__name__, error, self._ledger.instances,
            )  # fmt: skip
