"""The quota of a single process: a token bucket that fills at its share of the rate."""

from __future__ import annotations

from math import ceil, inf

from dataplane.quotas.limits import Limits


class Bucket:
    """The bucket of one of `share` processes that do not share their usage."""

    __slots__ = ("_at", "_burst", "_level", "_rate", "_share", "_slots")

    def __init__(self, share: int = 1) -> None:
        # The number of processes that share the limits.
        self._share = share
        # Tokens per second; None for no quota.
        self._rate: float | None = None
        # Maximum tokens in the bucket.
        self._burst = 1.0
        # Maximum concurrent requests.
        self._slots: int | None = None
        # Tokens in the bucket at `_at`; None before the first quota, which means full.
        self._level: float | None = None
        # When the level was computed.
        self._at = 0.0

    def limit(self, limits: Limits) -> None:
        share = self._share
        self._slots = None if limits.slots is None else ceil(limits.slots / share)
        if limits.rate is None:
            self._rate = self._level = None
            return
        self._rate = limits.rate / share
        self._burst = max(1.0, limits.burst / share)
        if self._level is not None:
            self._level = min(self._level, self._burst)

    def take(self, now: float, cost: float) -> float:
        rate = self._rate
        if rate is None:
            return 0.0
        cost = min(cost, self._burst)
        level = self._burst
        if self._level is not None:
            level = min(level, self._level + max(0.0, now - self._at) * rate)
        self._at = now
        if level < cost:
            self._level = level
            return (cost - level) / rate if rate > 0 else inf
        self._level = level - cost
        return 0.0

    def charge(self, cost: float) -> None:
        if self._level is not None:
            self._level -= cost

    def has_slot(self, now: float, in_flight: int) -> bool:
        return self._slots is None or in_flight < self._slots

    def note(self, in_flight: int) -> None:
        """Do nothing: no other process reads the count."""
