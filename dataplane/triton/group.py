"""The endpoints of one cluster: load balancing, retries, hedging and ejection.

A call goes to the cheaper of two random endpoints (calls in flight × latency). A call that was not
processed, or perhaps not, is retried on another endpoint once, within the budget. Endpoints that
are ejected and replicas with an open circuit get no calls. They are tried again with a copy of a
live request whose response is not used, so that no user's request is ever the trial.
"""

from __future__ import annotations

import asyncio
import logging
from random import random
from time import monotonic

from dataplane.config import Transport as Settings
from dataplane.triton.call_results import Fault, OnDone, Reply, TritonError
from dataplane.triton.calls import BalancedCall, Call
from dataplane.triton.endpoint import Endpoint
from dataplane.triton.health import outliers
from dataplane.triton.retry_budget import Budget
from dataplane.triton.version_endpoints import Replicas

log = logging.getLogger("interlock.dataplane")

# Smaller differences of cost are left to chance, so that equal endpoints share the calls at any
# load.
CLEARLY = 1.5


class Group:
    """Sends calls to its endpoints and updates their health by the results."""

    __slots__ = (
        "__weakref__",
        "_loop",
        "_settings",
        "budget",
        "closed",
        "ejected",
        "endpoints",
        "only",
    )

    def __init__(
        self,
        endpoints: tuple[Endpoint, ...],
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
    ) -> None:
        # In the order of the cluster's addresses.
        self.endpoints = endpoints
        # The only endpoint, if there is just one.
        self.only = endpoints[0] if len(endpoints) == 1 else None
        # Runs the deadlines.
        self._loop = loop
        # Thresholds and times.
        self._settings = settings
        # The budget of retries and hedges.
        self.budget = Budget(settings.retry_budget_bp, settings.retry_floor)
        # The number of ejected endpoints.
        self.ejected = sum(endpoint.health.ejected for endpoint in endpoints)
        # Whether one of the endpoints left the table; holders of the group must get a new one.
        self.closed = False
        if self.only is None:
            for endpoint in endpoints:
                endpoint.groups.add(self)

    # --- sending -------------------------------------------------------------------------------

    def post(self, replicas: Replicas, request: bytes, timeout_s: float, on_done: OnDone) -> None:
        """Send `request` to one of the endpoints."""
        self.budget.calls += 1
        if self.only is not None:
            call = Call(self, request, on_done)
            call.timer = self._loop.call_later(timeout_s, call.expire)
            self.only.start(call)
            return
        now = monotonic()
        first = BalancedCall(self, replicas, request, now + timeout_s, on_done)
        first.timer = self._loop.call_later(timeout_s, first.expire)
        if replicas.hedge_after_s is not None:
            first.hedge = self._loop.call_later(replicas.hedge_after_s, self._hedge, first)
        self._send(first, self._pick(replicas, -1, now), now)
        if self.ejected or replicas.open:
            self._send_trials(replicas, request, timeout_s, now)

    def retry_here(self, call: Call) -> bool:
        """Retry `call` on the endpoint whose connection broke; return whether it was sent."""
        endpoint = call.endpoint
        if call.retried or not self._may_repeat(endpoint):
            return False
        call.retried = True
        endpoint.retries += 1
        endpoint.start(call)
        return True

    def retry_elsewhere(self, call: BalancedCall) -> bool:
        """Retry `call` on another endpoint, once, within the budget; return whether it was sent."""
        if call.retried or call.rival is not None or not self._may_repeat(call.endpoint):
            return False
        call.retried = True
        now = monotonic()
        index = self._pick(call.replicas, call.index, now)
        self.endpoints[index].retries += 1
        self._send(call, index, now)
        return True

    def _may_repeat(self, endpoint: Endpoint) -> bool:
        if self.budget.take():
            return True
        endpoint.exhausted += 1
        return False

    def _send(self, call: BalancedCall, index: int, now: float) -> None:
        call.index = index
        call.sent_at = now
        call.forced = call.replicas.open > 0 and not call.replicas.is_closed(index)
        self.endpoints[index].start(call)

    def _hedge(self, call: BalancedCall) -> None:
        """Send the request to a second endpoint as well: the first takes long."""
        call.hedge = None
        if call.done or call.retried:
            return
        now = monotonic()
        index = self._pick(call.replicas, call.index, now)
        endpoint = self.endpoints[index]
        if endpoint.health.ejected or not call.replicas.is_closed(index):
            return
        if not self._may_repeat(call.endpoint):
            return
        rival = BalancedCall(self, call.replicas, call.request, call.until, call.on_done)
        rival.retried = True
        rival.timer = self._loop.call_later(max(0.0, call.until - now), rival.expire)
        call.rival, rival.rival = rival, call
        endpoint.hedges += 1
        self._send(rival, index, now)

    # --- choosing an endpoint ------------------------------------------------------------------

    def _pick(self, replicas: Replicas, but: int, now: float) -> int:
        """Return the index of an endpoint other than `but`: a healthy one if there is one."""
        size = len(self.endpoints)
        if self.ejected == 0 and replicas.open == 0 and but < 0:
            one = int(random() * size)  # noqa: S311
            two = int(random() * (size - 1))  # noqa: S311
            return self._cheaper(one, two + (two >= one), now)
        others = [index for index in range(size) if index != but]
        serving = [index for index in others if not self.endpoints[index].health.ejected]
        good = [index for index in serving if replicas.is_closed(index)]
        choice = good or serving or others
        one = int(random() * len(choice))  # noqa: S311
        if len(choice) == 1:
            return choice[0]
        two = int(random() * (len(choice) - 1))  # noqa: S311
        return self._cheaper(choice[one], choice[two + (two >= one)], now)

    def _cheaper(self, one: int, two: int, now: float) -> int:
        first, second = self.endpoints[one], self.endpoints[two]
        if not (first.health.latency_s and second.health.latency_s):
            # One of them has not answered yet.
            return one
        cost = second.health.cost(second.in_flight, now) * CLEARLY
        return one if first.health.cost(first.in_flight, now) <= cost else two

    def _send_trials(
        self, replicas: Replicas, request: bytes, timeout_s: float, now: float
    ) -> None:
        """Send a copy of a live request to each endpoint that is due for a trial."""
        for index, endpoint in enumerate(self.endpoints):
            circuit_due = replicas.trial_due(index, now)
            if endpoint.health.ejected:
                due = endpoint.health.trial_due(now)
                if circuit_due and not due:
                    replicas.released(index)
            else:
                due = circuit_due
            if due:
                call = BalancedCall(self, replicas, request, now + timeout_s, _ignore_result)
                call.trial = call.retried = True
                call.timer = self._loop.call_later(timeout_s, call.expire)
                self._send(call, index, now)

    # --- results -------------------------------------------------------------------------------

    def learn(self, call: BalancedCall, reply: Reply) -> bool:
        """Record a reply; return whether the call was sent to another endpoint instead."""
        if reply.status != 200:
            error = reply.error()
            # A call that expired in Triton's own queue was not seen by the version either.
            if error.fault not in (Fault.REFUSED, Fault.TIMEOUT):
                self.blame(call, error)
                return error.fault is Fault.DEAD and self.retry_elsewhere(call)
        now = monotonic()
        endpoint = call.endpoint
        endpoint.health.answered(now - call.sent_at, now)
        if call.trial and endpoint.health.ejected:
            self._restore(endpoint, now)
        if reply.status != 200:
            # Valid rows may be answered: a refusal says nothing about the replica.
            if call.trial:
                call.replicas.released(call.index)
        else:
            call.replicas.answered(call.index, forced=call.forced)
        return False

    def blame(self, call: BalancedCall, error: TritonError) -> None:
        """Count a failure for the endpoint, and for the replica if the endpoint was reached."""
        now = monotonic()
        endpoint = call.endpoint
        fault = error.fault
        # An answer that the version is dead is an answer too: other versions there may be healthy.
        is_answer = fault is Fault.FAILED or fault is Fault.DEAD
        took_s = now - call.sent_at if is_answer else None
        too_many = endpoint.health.failed(now, took_s)
        if endpoint.health.ejected:
            if call.trial:
                endpoint.health.eject(now)
        elif too_many:
            self._eject(endpoint, now, error.message)
        if fault is Fault.UNREACHABLE:
            # Everything on that endpoint is unreachable: the version is not at fault.
            if call.trial:
                call.replicas.released(call.index)
            return
        if call.trial or not call.forced:
            call.replicas.failed(call.index, now, error.message, dead=fault.is_dead)

    def blame_delay(self, call: BalancedCall, error: TritonError) -> None:
        """Count a missed deadline for the endpoint, unless the call had hardly any time."""
        waited_s = monotonic() - call.sent_at
        if call.trial or call.endpoint.health.was_patient(waited_s):
            self.blame(call, error)

    def judge(self, now: float) -> None:
        """Eject endpoints that fail far more often than their siblings; called once a second."""
        if self.only is not None:
            return
        healths = {endpoint.health: endpoint for endpoint in self.endpoints}
        for health in outliers(list(healths), self._settings):
            self._eject(healths[health], now, "it fails far more often than its siblings")

    def _eject(self, endpoint: Endpoint, now: float, reason: str) -> None:
        # In each of its clusters at most half may be ejected, and never the last one.
        groups = [group for group in endpoint.groups if not group.closed]
        if any((group.ejected + 1) * 2 > len(group.endpoints) for group in groups):
            return
        duration_s = endpoint.health.eject(now)
        for group in endpoint.groups:
            group.ejected += 1
        log.warning("endpoint.ejected: %s for %.1f s: %s", endpoint.address, duration_s, reason)

    def _restore(self, endpoint: Endpoint, now: float) -> None:
        endpoint.health.restore(now)
        for group in endpoint.groups:
            group.ejected -= 1
        log.info("endpoint.restored: %s", endpoint.address)


def _ignore_result(_: Reply | TritonError) -> None:
    pass
