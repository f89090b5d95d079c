"""The metrics of endpoints and circuits of the table."""

from __future__ import annotations

from collections.abc import Iterable

from dataplane.breaker import State
from dataplane.metrics import Labels, Page
from dataplane.triton.transport import Triton
from dataplane.triton.version_endpoints import Replicas


def add_endpoints(page: Page, triton: Triton) -> None:
    """Add the state of each endpoint, and its retries and hedges."""
    rows = [((("endpoint", endpoint.address),), endpoint) for endpoint in triton.endpoints()]
    page.family(
        "interlock_endpoint_ejected",
        "gauge",
        "1 while the endpoint is ejected because of failures, and gets no calls.",
        [(labels, int(endpoint.health.ejected)) for labels, endpoint in rows],
        merge="max",
    )
    page.family(
        "interlock_endpoint_ejections_total",
        "counter",
        "Number of times the endpoint was ejected.",
        [(labels, endpoint.health.ejections) for labels, endpoint in rows],
    )
    page.family(
        "interlock_endpoint_in_flight",
        "gauge",
        "Calls to the endpoint that are in flight or wait for a connection.",
        [(labels, endpoint.in_flight) for labels, endpoint in rows],
    )
    page.family(
        "interlock_endpoint_connections",
        "gauge",
        "Connections to the endpoint, including those being opened.",
        [(labels, endpoint.open) for labels, endpoint in rows],
    )
    page.family(
        "interlock_retries_total",
        "counter",
        "Calls to the endpoint after a failure elsewhere or before.",
        [(labels, endpoint.retries) for labels, endpoint in rows],
    )
    page.family(
        "interlock_hedges_total",
        "counter",
        "Calls to the endpoint because another endpoint took long.",
        [(labels, endpoint.hedges) for labels, endpoint in rows],
    )
    page.family(
        "interlock_retry_budget_exhausted_total",
        "counter",
        "Calls at the endpoint that were not retried or hedged because the budget was spent.",
        [(labels, endpoint.exhausted) for labels, endpoint in rows],
    )


def add_circuits(page: Page, rows: Iterable[tuple[Labels, Replicas]]) -> None:
    """Add the circuits that are not closed."""
    page.family(
        "interlock_circuit_state",
        "gauge",
        "Circuit of a version on an endpoint, while it is not closed: 1 half-open, 2 open.",
        [
            ((*labels, ("endpoint", circuit.address)), circuit.state.value)
            for labels, replicas in rows
            if replicas.open
            for circuit in replicas.circuits
            if circuit.state is not State.CLOSED
        ],
        merge="max",
    )
