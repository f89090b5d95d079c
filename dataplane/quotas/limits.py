"""What a tenant may use, and what those ask who count its use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from contract.routing import Tenant


@dataclass(frozen=True, slots=True)
class Limits:
    """Of the whole fleet: tokens per second, tokens at once, and requests under way.

    None is no limit. `burst` is at least one: below, no request would ever pass.
    """

    rate: float | None
    burst: float
    places: int | None

    @classmethod
    def of(cls, tenant: Tenant) -> Limits:
        rate = tenant.requests_per_s
        burst = tenant.burst if tenant.burst is not None else rate
        return cls(rate, max(1.0, burst or 0.0), tenant.concurrency_max)

    @property
    def are_any(self) -> bool:
        return self.rate is not None or self.places is not None


class Quota(Protocol):
    """Counts what one tenant uses; `now` is monotonic seconds."""

    def limit(self, limits: Limits) -> None:
        """Take new limits; what was used stays used."""

    def take(self, now: float, cost: float) -> float:
        """Take `cost` tokens and return 0, or take none and return the seconds until it may pass.

        What costs more than may come at once passes when that much is there.
        """

    def charge(self, cost: float) -> None:
        """Take what a request turned out to cost beyond what it came in with."""

    def has_place(self, now: float, in_flight: int) -> bool:
        """Say whether one more request may be under way beside the `in_flight` of this process."""

    def note(self, in_flight: int) -> None:
        """Note how many requests of this process are under way."""
