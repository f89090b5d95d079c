"""The telemetry of one request: its unit, its end, and the version at fault. It routes nothing.

A request is assigned once and ends once, however often the methods are called: see
`dataplane.ends`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dataplane import ends
from dataplane.unit_clusters import cluster_of

if TYPE_CHECKING:
    from dataplane.admission import Tenancy
    from dataplane.caller import Caller
    from dataplane.router import Decision
    from dataplane.serving import Lane
    from dataplane.telemetry import Telemetry
    from dataplane.triton import TritonError


class Counted:
    """A request's part in telemetry. Subclasses set the fields: a call would cost time."""

    __slots__ = ("_assigned", "_caller", "_cluster", "_first", "_telemetry", "_tenancy", "_unit")

    # Takes exposures and measurements.
    _telemetry: Telemetry
    # Gets the answer.
    _caller: Caller
    # The unit; None for a request without one.
    _unit: str | None
    # The tenant.
    _tenancy: Tenancy
    # The cluster for counts; see `Counter`.
    _cluster: int
    # The lane that it was assigned to, until its end is counted there.
    _assigned: Lane | None
    # The lane that failed it before, the error, and the end if stable answers.
    _first: tuple[Lane, TritonError, int] | None

    def _blame(self, lane: Lane, *, fell_back: bool, status: str | None = None) -> None:
        """Count the request as failed by the version of `lane`."""
        lane.counter.failed(self._unit, self._cluster, fell_back=fell_back)
        lane.runtime.stats.count(status or ("fallback" if fell_back else "error"))
        if not fell_back:
            self._end(ends.FAILED)

    def _end_unanswered(self, end: int) -> None:
        """Count the end of a request without an answer; `end` is that of the present lane."""
        first = self._first
        self._end(end if first is None else ends.end_without_answer(first[2], end))

    def _end(self, end: int) -> None:
        """Count the end of the request for the version that it was assigned to, once."""
        lane = self._assigned
        if lane is not None:
            lane.counter.end(end, self._unit, self._cluster)
            self._ended(end)

    def _ended(self, end: int, latency_us: float = 0.0) -> None:
        lane, self._assigned = self._assigned, None
        unit = self._unit
        if lane is None or not lane.decision.measured or unit is None or end == ends.REFUSED:
            return
        decision = lane.decision
        key = decision.split, unit, decision.variant
        self._telemetry.measure(key, ends.IS_UNANSWERED[end], end == ends.CACHED, int(latency_us))

    def _client_cluster(self) -> int:
        """Return the cluster of a request without a unit: of its API key, or its client."""
        if not self._tenancy.name:
            return self._caller.client_cluster
        headers = self._caller.headers
        key = headers.get(b"x-api-key") or headers.get(b"authorization", b"")
        return cluster_of(key.rpartition(b" ")[2])

    def _expose(self, decision: Decision) -> None:
        if self._unit is not None:
            self._telemetry.expose(
                decision.split,
                self._unit,
                decision.variant,
                decision.version,
                self._tenancy.name,
                self._caller.headers,
                decision.dimensions,
            )
