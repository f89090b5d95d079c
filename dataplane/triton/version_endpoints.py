"""The replicas of one version: their endpoints, with a circuit breaker for each.

A replica that is dead or faulty while its siblings answer is avoided, and nothing else: neither the
version elsewhere nor other versions on that endpoint. A circuit opens only if a sibling is clearly
better, so that one replica is always left; if all fail alike the version is at fault, and the
version's own breaker decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from contract.routing import Breaker as Settings
from dataplane.breaker import Breaker, State

if TYPE_CHECKING:
    from dataplane.triton.group import Group

# A sibling is clearly better if it failed this many times less.
BETTER = 2


class Circuit(Breaker):
    """The breaker of one (version, endpoint)."""

    __slots__ = ("_replicas", "address")

    def __init__(
        self, replicas: Replicas, address: str, settings: Settings, on_trip: Callable[[str], None]
    ) -> None:
        super().__init__(settings, lambda reason: on_trip(f"replica on {address}: {reason}"))
        # The endpoint.
        self.address = address
        # The replica and its siblings.
        self._replicas = replicas

    def may_open(self) -> bool:
        return any(
            other.state is State.CLOSED and other.failure_share * BETTER <= self.failure_share
            for other in self._replicas.circuits
            if other is not self
        )


class Replicas:
    """The replicas of a version that may answer a call: the target of `Triton.post`.

    With one endpoint there are no circuits: the version's breaker sees everything that they would.
    """

    __slots__ = ("_on_trip", "addresses", "circuits", "group", "hedge_after_s", "open")

    def __init__(
        self,
        addresses: tuple[str, ...],
        settings: Settings | None = None,
        on_trip: Callable[[str], None] | None = None,
        hedge_after_ms: int | None = None,
    ) -> None:
        # The endpoints of the version's cluster.
        self.addresses = addresses
        # Delay of a hedge to a second endpoint; None for no hedging.
        self.hedge_after_s = hedge_after_ms / 1000 if hedge_after_ms is not None else None
        # Called with the reason when a circuit opens, with the endpoint's address.
        self._on_trip = on_trip or _ignore_trip
        # One for each endpoint, in the order of `addresses`.
        self.circuits: tuple[Circuit, ...] = ()
        if len(addresses) > 1:
            settings = settings or Settings()
            self.circuits = tuple(
                Circuit(self, address, settings, self._on_trip) for address in addresses
            )
        # The number of circuits that are not closed; 0 lets the hot path skip them.
        self.open = 0
        # The group of endpoints, once a call was sent.
        self.group: Group | None = None

    def answered(self, index: int, *, forced: bool) -> None:
        """Record a good answer of the replica; a `forced` one closes an open circuit."""
        circuit = self.circuits[index]
        if circuit.calm:
            return
        if forced and circuit.state is State.OPEN:
            circuit.reset()
        else:
            circuit.succeeded()
        self._count()

    def failed(self, index: int, now: float, reason: str, *, dead: bool) -> None:
        """Record an error of the replica, or (`dead`) no answer."""
        self.circuits[index].failed(now, reason, dead=dead, unreachable=dead)
        self._count()

    def released(self, index: int) -> None:
        """Return a trial that proved nothing."""
        self.circuits[index].released()

    def trial_due(self, index: int, now: float) -> bool:
        """Return whether the replica should be tried now; True uses up its one trial."""
        circuit = self.circuits[index]
        return circuit.state is not State.CLOSED and circuit.admits(now)

    def is_closed(self, index: int) -> bool:
        return self.circuits[index].state is State.CLOSED

    def _count(self) -> None:
        self.open = sum(circuit.state is not State.CLOSED for circuit in self.circuits)


def _ignore_trip(_: str) -> None:
    pass
