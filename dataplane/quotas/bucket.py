"""A quota of one process by itself: a bucket that fills at its share of the rate."""

from __future__ import annotations

from math import ceil, inf

from dataplane.quotas.limits import Limits


class Bucket:
    """One of `share` processes that do not know of each other's use."""

    __slots__ = ("_at", "_burst", "_level", "_places", "_rate", "_share")

    def __init__(self, share: int = 1) -> None:
        # How many processes share the limits.
        self._share = share
        # Tokens that a second brings; None for no quota.
        self._rate: float | None = None
        # Tokens that the bucket holds at most.
        self._burst = 1.0
        # Requests that may be under way.
        self._places: int | None = None
        # Tokens in it at the time below; None before the first quota, and stands for full.
        self._level: float | None = None
        # When the level was taken.
        self._at = 0.0

    def limit(self, limits: Limits) -> None:
        share = self._share
        self._places = None if limits.places is None else ceil(limits.places / share)
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

    def has_place(self, now: float, in_flight: int) -> bool:
        return self._places is None or in_flight < self._places

    def note(self, in_flight: int) -> None:
        """Nobody else asks."""
