"""What `/metrics` shows of endpoints and circuits: those of the table, and no others."""

from __future__ import annotations

from collections.abc import Iterable

from dataplane.breaker import State
from dataplane.metrics import Labels, Page
from dataplane.triton.transport import Triton
from dataplane.triton.version_endpoints import Copies


def add_endpoints(page: Page, triton: Triton) -> None:
    """Add the state of each endpoint, and what was sent a second time."""
    rows = [((("endpoint", found.address),), found) for found in triton.endpoints()]
    page.family(
        "interlock_endpoint_ejected",
        "gauge",
        "1 while the endpoint gets no calls because it failed, or failed more than its siblings.",
        [(labels, int(found.health.ejected)) for labels, found in rows],
        merge="max",
    )
    page.family(
        "interlock_endpoint_ejections_total",
        "counter",
        "How often the endpoint was ejected.",
        [(labels, found.health.ejections) for labels, found in rows],
    )
    page.family(
        "interlock_endpoint_in_flight",
        "gauge",
        "Calls to the endpoint that were sent or wait for a connection.",
        [(labels, found.in_flight) for labels, found in rows],
    )
    page.family(
        "interlock_endpoint_connections",
        "gauge",
        "Connections to the endpoint, those being opened included.",
        [(labels, found.open) for labels, found in rows],
    )
    page.family(
        "interlock_retries_total",
        "counter",
        "Calls that came to the endpoint because they failed before.",
        [(labels, found.retries) for labels, found in rows],
    )
    page.family(
        "interlock_hedges_total",
        "counter",
        "Calls that came to the endpoint because another one took long.",
        [(labels, found.hedges) for labels, found in rows],
    )
    page.family(
        "interlock_retry_budget_exhausted_total",
        "counter",
        "Calls at the endpoint that were not sent a second time because the budget was spent.",
        [(labels, found.exhausted) for labels, found in rows],
    )


def add_circuits(page: Page, rows: Iterable[tuple[Labels, Copies]]) -> None:
    """Add the circuits that are not closed."""
    page.family(
        "interlock_circuit_state",
        "gauge",
        "Circuit of a version on one endpoint, only while it is not closed: 1 half-open, 2 open.",
        [
            ((*labels, ("endpoint", circuit.address)), circuit.state.value)
            for labels, copies in rows
            if copies.open
            for circuit in copies.circuits
            if circuit.state is not State.CLOSED
        ],
        merge="max",
    )
