"""One prediction after its request was read: route, batch, answer, fall back, count.

A prediction is a small state machine that its batcher calls back. It ends exactly once, with an
answer or a refusal. If a version fails a request that another can answer, the failure counts for
the version, and stable gets the request while the deadline allows. The end of the request is
counted once, for the version that it was assigned to, whichever version answered: see
`dataplane.ends`.
"""

from __future__ import annotations

import logging
from time import monotonic, time_ns

from contract.request_ids import request_id_unit
from dataplane import ends
from dataplane.admission import Tenancy
from dataplane.batch_reply import NotJson, Output, head_of
from dataplane.batching import QueueFull, Shed, Unsent
from dataplane.cache import Entry, Ticket
from dataplane.caller import Caller
from dataplane.codec import InferRequest
from dataplane.errors import Refusal, unavailable
from dataplane.fair_queue import ABANDONED
from dataplane.request_labels import Counted
from dataplane.response_headers import CACHED_LINES, COMPUTED_LINES, cached_stages, computed_stages
from dataplane.responses import Form, infer_form, plain_form
from dataplane.serving import FIRST_ATTEMPT, Lane, LiveModel, Serving
from dataplane.telemetry import Telemetry
from dataplane.triton import Fault, TritonError
from dataplane.unit_clusters import cluster_of_bucket

log = logging.getLogger("interlock.dataplane")

# Below this share of the model's timeout, an expired deadline says nothing about the version:
# impatient clients set such deadlines, and a failed first version leaves little time.
IMPATIENT = 0.5

_REFUSALS: dict[Fault, tuple[int, str]] = {
    Fault.REFUSED: (400, "refused_by_version"),
    Fault.FAILED: (500, "version_failed"),
    Fault.DEAD: (503, "version_unavailable"),
    Fault.UNREACHABLE: (503, "serving_unreachable"),
    Fault.TIMEOUT: (504, "deadline_exceeded"),
}


class Prediction(Counted):
    """The job of a batcher, and the state of its request."""

    __slots__ = (
        "_answered_ns",
        "_arrived_at",
        "_form",
        "_lane",
        "_model",
        "_read_at",
        "_serving",
        "_timeout_s",
        "deadline",
        "is_urgent",
        "priority",
        "request",
        "submitted_at",
        "ticket",
    )

    def __init__(
        self,
        serving: Serving,
        telemetry: Telemetry,
        caller: Caller,
        form: Form,
        model: LiveModel,
        request: InferRequest,
        unit: str | None,
        arrived_at: float,
        timeout_s: float,
        tenancy: Tenancy,
    ) -> None:
        # Creates the lanes.
        self._serving = serving
        # The fields of `Counted`.
        self._telemetry = telemetry
        self._caller = caller
        self._unit = unit
        self._tenancy = tenancy
        self._cluster = 0
        self._assigned: Lane | None = None
        self._first: tuple[Lane, TritonError, int] | None = None
        # Encodes the answer.
        self._form = form
        # The model, of the generation at the request's arrival.
        self._model = model
        # The tensors.
        self.request = request
        # Monotonic seconds; the loop's own clock is only exact to a millisecond.
        self._arrived_at = arrived_at
        # The client's timeout, at most the model's.
        self._timeout_s = timeout_s
        # The tenant's priority class.
        self.priority = tenancy.priority
        # When it was read and routed.
        self._read_at = arrived_at
        # When it was queued for the present version.
        self.submitted_at = arrived_at
        # When the present version must have answered.
        self.deadline = arrived_at + timeout_s
        # See `batching.Job`.
        self.is_urgent = False
        # The present lane.
        self._lane: Lane
        # The time in the id of the answer, nanoseconds since 1970, once it has one.
        self._answered_ns = 0
        # The cache's ticket, while the answer is to be cached or is awaited.
        self.ticket: Ticket | None = None

    def start(self, version: str | None) -> None:
        """Route the request and queue it. Raises Refusal."""
        model, unit = self._model, self._unit
        router = model.router
        if version is not None:
            decision = router.explicit(version)
        elif router.targeted and not router.targets(self._tenancy.name, self._caller.headers):
            decision = router.untargeted
        else:
            decision, bucket = router.place(unit)
            if decision.split:
                self._cluster = cluster_of_bucket(bucket) if bucket >= 0 else self._client_cluster()
        if unit is not None:
            model.sketch.add(unit)
        lane = model.lanes.get(decision) or self._serving.lane(model, decision)
        lane.counter.assign(unit, self._cluster)
        self._assigned = lane
        try:
            if decision.exposures:
                # However the request ends: otherwise variants that lose requests could not be
                # compared.
                self._expose(decision)
            self._read_at = monotonic()
            if lane.fallback is not None:
                # The rest of the time is reserved for the fallback.
                first_s = FIRST_ATTEMPT * model.timeout_s
                if first_s < self._timeout_s:
                    self.deadline = self._arrived_at + first_s
            caller = self._caller
            caller.job = self
            cached = lane.cached
            now = self._read_at
            if cached is None or not cached.model.take_over(
                self, cached, self._tenancy.name, caller, now
            ):
                self._enter(lane, now)
        except BaseException:
            # The caller answers with an error.
            self._end(ends.FAILED)
            raise

    def answered(self, outputs: list[Output], start: int, dispatched_at: float) -> None:
        """Answer with the rows from `start` on."""
        encoded = self._write(outputs, start)
        if encoded is None:
            return
        headers, body = encoded
        now = monotonic()
        self._count_answer(now, start)
        try:
            self._respond(headers, body, dispatched_at, now)
        finally:
            if self.ticket is not None:
                ticket, self.ticket = self.ticket, None
                ticket.lane.model.keep(ticket, outputs, start)
        mirror = self._lane.mirror
        if mirror is not None and self._first is None:
            tenant = self._tenancy.name
            mirror.offer(self.request, outputs, start, self._unit, self._answered_ns, tenant)

    def failed(self, error: TritonError) -> None:
        """Fall back to stable if possible, or answer with the failure."""
        runtime = self._lane.runtime
        now = monotonic()
        fault = error.fault
        is_unsent = isinstance(error, Unsent)
        if fault is Fault.REFUSED or is_unsent or error.is_ours or self._is_out_of_time(error):
            # A request that was never sent says nothing about the version's health, and neither
            # does one that failed because of our own load.
            runtime.breaker.released()
            if isinstance(error, Shed) and self.deadline != ABANDONED:
                self._shed(self._lane, error.overloaded)
                return
        elif not error.counted:
            error.counted = True
            # With several endpoints, the circuit breakers of the replicas find the one that hangs.
            hangs = fault is Fault.TIMEOUT and not runtime.replicas.circuits
            runtime.breaker.failed(
                now, error.message, dead=fault.is_dead, unreachable=hangs or fault is Fault.DEAD
            )
        self._end_failed(error, now)

    def _end_failed(self, error: TritonError, now: float) -> None:
        lane = self._lane
        if self._is_out_of_time(error):
            is_abandoned = self.deadline == ABANDONED
            lane.runtime.stats.count("abandoned" if is_abandoned else "expired")
            self._end_unanswered(ends.ABANDONED if is_abandoned else ends.EXPIRED)
            self._refuse(Refusal(504, "deadline_exceeded", error.message))
            return
        in_time = now < self._arrived_at + self._timeout_s
        if lane.fallback is not None and in_time and self.deadline != ABANDONED:
            self._fall_back(lane, lane.fallback, error)
            return
        status, code = _REFUSALS[error.fault]
        if error.fault is Fault.REFUSED:
            # No version accepted it, so the request itself is at fault.
            lane.runtime.stats.count("invalid")
            self._end_unanswered(ends.REFUSED)
        elif self._first is None:
            self._blame(lane, fell_back=False)
        else:
            # In comparisons of versions the request counts for the one that failed it first.
            lane.runtime.stats.count("error")
            self._end_unanswered(ends.FAILED)
        retry_after_s = 1 if status == 503 else None
        self._refuse(Refusal(status, code, error.message, retry_after_s=retry_after_s))

    def abandoned(self) -> None:
        """Leave the queue, if the request is still queued: the client hung up.

        A request with a cache ticket continues, because others may wait for its answer. In any case
        the client got no answer of the version.
        """
        self._end_unanswered(ends.ABANDONED)
        if self.ticket is None:
            self.deadline = ABANDONED

    def _is_out_of_time(self, error: TritonError) -> bool:
        """Return whether the deadline passed for reasons other than the version.

        The client's timeout was short, or the first version left little time. A client that hangs
        up after its request was sent changes nothing.
        """
        if error.fault is not Fault.TIMEOUT:
            return False
        if self.deadline == ABANDONED and isinstance(error, Unsent):
            return True
        granted_s = self._arrived_at + self._timeout_s - self.submitted_at
        return granted_s < IMPATIENT * self._model.timeout_s

    # --- callbacks of the cache (see `dataplane.cache.in_flight.Waiter`) -------------------------

    def on_hit(self, lane: Lane, entry: Entry) -> None:
        self._lane = lane
        request = self.request
        if self._form is infer_form and request.outputs is None and not request.binary:
            headers, body = lane.headers, head_of(lane.head, request) + entry.tail
        else:
            route = self._model.route
            encoded = self._write(entry.outputs(route.signature, batched=route.batched), 0)
            if encoded is None:
                return
            headers, body = encoded
        lane.runtime.stats.count_hit(lane.cache_state)
        has_ended = self._assigned is None
        lane.counter.count_hit(has_ended=has_ended)
        if lane.decision.measured:
            self._ended(ends.CACHED)
        self._assigned = None
        now = monotonic()
        arrived_at, read_at = self._arrived_at, self._read_at
        if not self._answered_ns:
            self._answered_ns = time_ns()
        headers += CACHED_LINES % (
            *cached_stages(read_at - arrived_at, now - read_at, now - arrived_at),
            self._id(),
        )
        self._caller.respond(200, body, headers)

    def on_miss(self, lane: Lane) -> None:
        lane.runtime.stats.count_miss()
        self._enter(lane, monotonic())

    def on_timeout(self, lane: Lane) -> None:
        self._lane = lane
        message = "the deadline passed while an identical request was in progress"
        # The breaker did not admit this request; it gets the result of the one that it admitted.
        self._end_failed(TritonError(Fault.TIMEOUT, message), monotonic())

    # --- queueing ------------------------------------------------------------------------------

    def _enter(self, lane: Lane, now: float) -> None:
        self._lane = lane
        self.submitted_at = now
        runtime = lane.runtime
        breaker = runtime.breaker
        if not breaker.calm and not breaker.admits(now, last_resort=lane.fallback is None):
            self._reject(lane, "breaker_open", "the version's circuit breaker is open")
            return
        try:
            runtime.batcher.submit(self)
        except QueueFull as full:
            breaker.released()
            self._shed(lane, full)
        except Exception:
            # Requests that wait in the cache for the same answer must be notified.
            log.exception("a request could not be queued")
            breaker.released()
            self._end_failed(TritonError(Fault.FAILED, "the request could not be queued"), now)

    def _reject(self, lane: Lane, code: str, message: str) -> None:
        if lane.fallback is not None:
            error = TritonError(Fault.DEAD, code)
            self._fall_back(lane, lane.fallback, error, code, end=ends.BYPASSED)
            return
        if self._first is None:
            self._blame(lane, fell_back=False, status="rejected")
        else:
            self._end_unanswered(ends.FAILED)
        self._refuse(unavailable(code, message))

    def _shed(self, lane: Lane, full: QueueFull) -> None:
        """Fall back to stable if it has spare capacity, or refuse. The version did not fail."""
        lane.runtime.stats.count("shed")
        fallback = lane.fallback
        if fallback is not None and fallback.runtime.batcher.has_room(self.request.rows):
            error = TritonError(Fault.DEAD, full.code)
            self._fall_back(lane, fallback, error, full.code, end=ends.SHED)
            return
        self._end_unanswered(ends.SHED)
        self._serving.admission.count_shed(full.code)
        self._refuse(unavailable(full.code, full.message, full.retry_after_s))

    def _fall_back(
        self,
        lane: Lane,
        fallback: Lane,
        error: TritonError,
        reason: str | None = None,
        *,
        end: int = ends.FELL_BACK,
    ) -> None:
        """Go to stable; if stable answers, the request ends as `end`."""
        # Stable's answer must not be cached as this version's.
        ticket, self.ticket = self.ticket, None
        is_refusal = error.fault is Fault.REFUSED
        self._first = (lane, error, ends.REFUSED if is_refusal else end)
        reason = reason or error.fault.value
        fallbacks = lane.runtime.stats.fallbacks
        fallbacks[reason] = fallbacks.get(reason, 0) + 1
        if end != ends.SHED and not is_refusal:
            # A refusal counts for the version only if stable accepts the same request.
            self._blame(lane, fell_back=True)
        timeout_s = self._timeout_s
        self.deadline = self._arrived_at + timeout_s
        now = monotonic()
        self.is_urgent = self.deadline - now < timeout_s / 2
        self._enter(fallback, now)
        if ticket is not None:
            ticket.failed()

    # --- answering -----------------------------------------------------------------------------

    def _write(self, outputs: list[Output], start: int) -> tuple[bytes, bytes] | None:
        """Encode the answer in the requested form; None if that failed, which is a failure."""
        if self._form is plain_form and (self._answered_ns or self.request.id is None):
            # The client sent no id.
            self._answered_ns = time_ns()
            self.request.id = self._id().decode()
        try:
            return self._form(self._model, self._lane, self.request, outputs, start)
        except NotJson as error:
            self.failed(TritonError(Fault.FAILED, str(error)))
        except Exception:
            # The other jobs of the batch still wait for their rows.
            log.exception("an answer could not be encoded")
            self.failed(TritonError(Fault.FAILED, "the answer could not be encoded"))
        return None

    def _count_answer(self, now: float, start: int) -> None:
        lane = self._lane
        runtime = lane.runtime
        if not runtime.breaker.calm:
            runtime.breaker.succeeded(together=start > 0)
        took_s = now - self.submitted_at
        runtime.stats.count("success")
        runtime.stats.latency.observe(took_s)
        first = self._first
        if first is None:
            latency_us = took_s * 1e6
            has_ended = self._assigned is None
            lane.counter.answered(self._unit, latency_us, self._cluster, has_ended=has_ended)
            if lane.decision.measured:
                self._ended(ends.ANSWERED, latency_us)
            self._assigned = None
        elif first[2] == ends.REFUSED:
            self._blame(first[0], fell_back=True)
            self._end(ends.FELL_BACK)
        else:
            self._end(first[2])

    def _id(self) -> bytes:
        """Return the id of the answer: with the exposed unit, and the seal of the tenant."""
        lane = self._lane
        exposed = lane if self._first is None else self._first[0]
        unit = b""
        if exposed.decision.exposures and self._unit is not None:
            unit = request_id_unit(self._unit)
        seal = self._tenancy.seal
        sealed = seal.of(lane.id_head) if seal is not None else b""
        return b"%b%x%b%b" % (lane.id_head, self._answered_ns, unit, sealed)

    def _respond(self, headers: bytes, body: bytes, dispatched_at: float, now: float) -> None:
        # Between reading and queueing is the cache lookup, or the version that failed first.
        first = self._first
        arrived_at, read_at, submitted_at = self._arrived_at, self._read_at, self.submitted_at
        if not self._answered_ns:
            self._answered_ns = time_ns()
        headers += COMPUTED_LINES % (
            *computed_stages(
                read_at - arrived_at,
                b"cache" if first is None else b"first",
                submitted_at - read_at,
                dispatched_at - submitted_at,
                now - dispatched_at,
                now - arrived_at,
            ),
            self._id(),
        )
        if first is not None:
            headers += self._fallback_header()
        self._caller.respond(200, body, headers)

    def _refuse(self, refusal: Refusal) -> None:
        headers = self._lane.provenance
        total_ms = (monotonic() - self._arrived_at) * 1e3
        headers += b"server-timing: total;dur=%.2f\r\n" % total_ms
        if self._first is not None:
            headers += self._fallback_header()
        try:
            self._caller.refuse(refusal, headers)
        finally:
            if self.ticket is not None:
                ticket, self.ticket = self.ticket, None
                ticket.failed()

    def _fallback_header(self) -> bytes:
        assert self._first is not None
        error = self._first[1]
        reason = error.message if error.message in _REJECTIONS else error.fault.value
        return b"x-interlock-fallback: %b\r\n" % reason.encode()


_REJECTIONS = ("breaker_open", "queue_full", "overloaded")
