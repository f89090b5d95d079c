"""The limits of a tenant, and the interface of the quotas that enforce them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from contract.routing import Tenant


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the whole fleet: tokens per second, burst, and concurrent requests.

    None is no limit. `burst` is at least one: otherwise no request would ever pass.
    """

    rate: float | None
    burst: float
    slots: int | None

    @classmethod
    def of(cls, tenant: Tenant) -> Limits:
        rate = tenant.requests_per_s
        burst = tenant.burst if tenant.burst is not None else rate
        return cls(rate, max(1.0, burst or 0.0), tenant.concurrency_max)

    @property
    def are_any(self) -> bool:
        return self.rate is not None or self.slots is not None


class Quota(Protocol):
    """Counts the usage of one tenant; `now` is monotonic seconds."""

    def limit(self, limits: Limits) -> None:
        """Apply new limits; the usage so far is kept."""

    def take(self, now: float, cost: float) -> float:
        """Take `cost` tokens and return 0, or take none and return the seconds to wait.

        A request that costs more than the burst passes when a full burst is available.
        """

    def charge(self, cost: float) -> None:
        """Charge the cost of a request beyond the cost that it entered with."""

    def has_slot(self, now: float, in_flight: int) -> bool:
        """Return whether one more request may run besides the `in_flight` of this process."""

    def note(self, in_flight: int) -> None:
        """Record the number of requests in progress in this process."""
