"""Moves tokens between an instance's ledger and the fleet's buckets in Redis.

One worker of an instance does it for all of them, whoever holds the lock of the file beside the
ledger; when it ends, another finds the lock free. It makes one call each RENEW_S for all tenants in
use, and none while a request waits. Whatever a call cannot bring, `ledger` says what holds then.
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
# Where somebody ran short and there was enough, renewals come as soon as this.
SOON_S = 0.02
# An instance without any use of a quota is heard of so often, for the others to count it.
HEARD_S = 0.25
# How often an instance without limits looks whether there are any.
LOOK_S = 0.5
# For so long ahead an instance leases what it is asked for.
AHEAD_S = 0.15
# A tenant that nobody asked for in so long gives everything back.
IDLE_S = 5.0
CALL_TIMEOUT_S = 0.5
CALLS_MAX = 500
# How fast a demand of the past is forgotten, at each renewal.
FADE = 0.7


@dataclass(slots=True)
class Account:
    """What the leader remembers of a line between two renewals."""

    used: float
    unmet: float
    at: float
    demand: float = 0.0
    is_known: bool = False


@dataclass(slots=True)
class Call:
    """What is asked of Redis for one tenant; see `script`."""

    number: int
    name: str
    limits: Limits
    owed: float
    given: float
    wanted: float
    demand: float
    credit: float
    peak: float
    is_known: bool

    def packed(self) -> tuple[float | bool, ...]:
        return (
            self.limits.rate or 0.0, self.limits.burst, self.owed, self.given, self.wanted,
            self.demand, self.credit, float(self.limits.places or 0), self.peak, self.is_known,
        )  # fmt: skip


class Leases:
    """Renews the leases of one instance. Raises OSError where its lock cannot be made."""

    def __init__(
        self,
        ledger: Ledger,
        client: redis.Redis[bytes],
        instance: str,
        tenants: Callable[[], dict[int, tuple[str, Limits]]],
        lock: Path,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        # What the workers share.
        self._ledger = ledger
        # Where the fleet's buckets are.
        self._script = client.register_script(SCRIPT)
        # The instance's name in the fleet.
        self._instance = instance
        # Which tenant with limits has which line.
        self._tenants = tenants
        # Held by the worker that renews; None once it is closed.
        self._lock: int | None = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # Monotonic seconds.
        self._clock = clock
        # By line, for those that are woken.
        self._accounts: dict[int, Account] = {}
        # When the next renewal is due.
        self._due_at = 0.0
        # Whether the last renewal brought all that was wanted.
        self._was_enough = True
        # Whether Redis was away at the last renewal; None before the first.
        self._was_away: bool | None = None
        # Set when it is time to end.
        self._is_stopping = False

    def stop(self) -> None:
        """Have `run` end with its turn: a call to Redis was seen to swallow a cancellation."""
        self._is_stopping = True

    def close(self) -> None:
        """Let another worker renew. May be called again."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def run(self) -> None:
        """Renew until it is stopped, as long as this worker is the one."""
        while not self._is_stopping:
            try:
                await self.turn()
            except Exception:
                log.exception("leases of quotas could not be renewed")
                await asyncio.sleep(RENEW_S)
            await asyncio.sleep(SOON_S if self._tenants() else LOOK_S)

    async def turn(self) -> None:
        """Renew if it is time to, and ours to do."""
        if not self._tenants() or not self._leads():
            return
        now = self._clock()
        is_soon = self._was_enough and self._ledger.is_short
        if now >= self._due_at or is_soon:
            # Not all instances at once.
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
        """Tell Redis what was used, give back what is too much, and lease what is wanted."""
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

    # --- what is asked ---------------------------------------------------------------------------

    def _calls(self, now: float) -> list[Call]:
        ledger, tenants = self._ledger, self._tenants()
        calls: list[Call] = []
        kept: list[int] = []
        with ledger.locked():
            instances = ledger.instances
            for number in dict.fromkeys(ledger.woken()):
                line = ledger.read(number)
                found = tenants.get(number)
                if now - line.touched_at > IDLE_S:
                    self._accounts.pop(number, None)
                    if found is not None:
                        calls.append(self._farewell(number, *found, line))
                    ledger.write(number, Line(used=line.used, unmet=line.unmet))
                    continue
                kept.append(number)
                # Another worker may have a newer table, with a tenant that this one does not know.
                if found is not None and len(calls) < CALLS_MAX:
                    calls.append(self._call(number, *found, line, instances, now))
                    ledger.write(number, line)
            ledger.keep_woken(kept)
        return calls

    def _call(
        self, number: int, name: str, limits: Limits, line: Line, instances: float, now: float
    ) -> Call:
        """Return what to ask for a line, and take from it what is given back."""
        account = self._accounts.get(number)
        if account is None:
            account = self._accounts[number] = Account(line.used, line.unmet, now)
        elapsed_s = max(SOON_S, now - account.at)
        asked = line.used - account.used + line.unmet - account.unmet
        account.demand = max(asked / elapsed_s, account.demand * FADE)
        account.used, account.unmet, account.at = line.used, line.unmet, now
        rate = limits.rate or 0.0
        most = max(1.0, limits.burst / instances)
        target = max(most, min(account.demand, rate) * AHEAD_S)
        if self._was_away:
            # What the instance filled by itself meanwhile was nobody's to lease.
            line.owed = max(0.0, line.credit)
        given = max(0.0, line.credit - target) if limits.rate is not None else 0.0
        line.credit -= given
        owed, line.owed = line.owed, 0.0
        peak, line.peak = line.peak, 0.0
        wanted = max(0.0, target - line.credit) if limits.rate is not None else 0.0
        return Call(
            number, name, limits, owed, given, wanted, account.demand, line.credit, peak,
            account.is_known,
        )  # fmt: skip

    def _farewell(self, number: int, name: str, limits: Limits, line: Line) -> Call:
        given = line.credit - line.owed
        return Call(number, name, limits, max(0.0, -given), max(0.0, given), 0, 0, 0, 0, True)

    # --- what comes of it ------------------------------------------------------------------------

    def _apply(self, calls: list[Call], instances: float, answers: list[list[float]]) -> None:
        ledger, now = self._ledger, self._clock()
        was_enough = True
        with ledger.locked():
            for call, (granted, share, places) in zip(calls, answers, strict=True):
                account = self._accounts.get(call.number)
                if account is None:
                    continue
                account.is_known = True
                line = ledger.read(call.number)
                line.credit += granted
                line.share, line.places = share, places
                ledger.write(call.number, line)
                was_enough = was_enough and granted >= call.wanted
            ledger.renewed(now, instances)
        self._was_enough = was_enough
        if self._was_away:
            log.info("quotas.leased: Redis is back; quotas hold for the fleet again")
        self._was_away = False

    def _away(self, calls: list[Call], error: Exception) -> None:
        ledger = self._ledger
        with ledger.locked():
            for call in calls:
                # It may have been told all the same: then it is paid twice, and never not at all.
                line = ledger.read(call.number)
                line.owed += call.owed
                ledger.write(call.number, line)
        if not self._was_away and not self._ledger.is_leased(self._clock()):
            self._was_away = True
            log.warning(
                "quotas.shared: Redis does not answer (%s: %s); this instance takes a share of "
                "each quota, one part in %.0f",
                type(error).__name__, error, self._ledger.instances,
            )  # fmt: skip
