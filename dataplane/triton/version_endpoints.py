"""The copies of one version: where they are, and a circuit breaker for each of them.

A copy that is dead or faulty while its siblings answer is avoided, and nothing else is: neither
the version elsewhere nor other versions on that endpoint. A circuit never opens unless a sibling
fares clearly better, so that one copy is always left; when all fail alike it is the version that
is at fault, and the version's own breaker decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from contract.routing import Breaker as Settings
from dataplane.breaker import Breaker, State

if TYPE_CHECKING:
    from dataplane.triton.group import Group

# A sibling fares clearly better when it failed so many times less.
BETTER = 2


class Circuit(Breaker):
    """The breaker of one (version, endpoint)."""

    __slots__ = ("_copies", "address")

    def __init__(
        self, copies: Copies, address: str, settings: Settings, on_trip: Callable[[str], None]
    ) -> None:
        super().__init__(settings, lambda reason: on_trip(f"copy on {address}: {reason}"))
        # The endpoint.
        self.address = address
        # It and its siblings.
        self._copies = copies

    def may_open(self) -> bool:
        return any(
            other.state is State.CLOSED and other.failure_share * BETTER <= self.failure_share
            for other in self._copies.circuits
            if other is not self
        )


class Copies:
    """What a batcher hands to `Triton.post` to say who may answer.

    With one endpoint there are no circuits: the version's breaker sees all that they would.
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
        # A second endpoint is asked after so long; None for never.
        self.hedge_after_s = hedge_after_ms / 1000 if hedge_after_ms is not None else None
        # Told why a circuit opened, with the endpoint's name.
        self._on_trip = on_trip or _unheard
        # One for each endpoint, in the order of `addresses`.
        self.circuits: tuple[Circuit, ...] = ()
        if len(addresses) > 1:
            settings = settings or Settings()
            self.circuits = tuple(
                Circuit(self, address, settings, self._on_trip) for address in addresses
            )
        # How many circuits are not closed; nought lets the hot path look at none of them.
        self.open = 0
        # The endpoints as the transport knows them, once it was asked for a call.
        self.group: Group | None = None

    def answered(self, index: int, *, forced: bool) -> None:
        """Take note that the copy gave a good answer; a `forced` one closes an open circuit."""
        circuit = self.circuits[index]
        if circuit.calm:
            return
        if forced and circuit.state is State.OPEN:
            circuit.reset()
        else:
            circuit.succeeded()
        self._count()

    def failed(self, index: int, now: float, reason: str, *, dead: bool) -> None:
        """Take note of a faulty answer, or (`dead`) of none."""
        self.circuits[index].failed(now, reason, dead=dead, gone=dead)
        self._count()

    def released(self, index: int) -> None:
        """Give back a trial that proved nothing."""
        self.circuits[index].released()

    def trial_due(self, index: int, now: float) -> bool:
        """Return whether the copy is to be tried again now; a True uses up its one trial."""
        circuit = self.circuits[index]
        return circuit.state is not State.CLOSED and circuit.admits(now)

    def is_closed(self, index: int) -> bool:
        return self.circuits[index].state is State.CLOSED

    def _count(self) -> None:
        self.open = sum(circuit.state is not State.CLOSED for circuit in self.circuits)


def _unheard(_: str) -> None:
    pass
