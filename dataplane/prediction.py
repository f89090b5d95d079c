"""One prediction after its request was read: decide, batch, answer, fall back, count.

A prediction is a small state machine that its batcher calls back. It ends exactly once, with an
answer or a refusal. A version that fails a request for which there is another way gets the blame,
and stable gets the request, while the deadline allows. How it ended is counted once, for the
version that it was assigned to, whoever answered: see `dataplane.ends`.
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
from dataplane.responses import Form, infer_form, plain_form
from dataplane.serving import FIRST_ATTEMPT, Lane, LiveModel, Serving
from dataplane.telemetry import Telemetry
from dataplane.timing import CACHED_LINES, COMPUTED_LINES, cached_stages, computed_stages
from dataplane.triton import Fault, TritonError
from dataplane.unit_clusters import cluster_of_bucket

log = logging.getLogger("interlock.dataplane")

# Less than this part of the model's timeout is too little: that it ran out says nothing about the
# version. Impatient clients give so little, and a version that failed leaves so little.
IMPATIENT = 0.5

_REFUSALS: dict[Fault, tuple[int, str]] = {
    Fault.REFUSED: (400, "refused_by_version"),
    Fault.FAILED: (500, "version_failed"),
    Fault.DEAD: (503, "version_unavailable"),
    Fault.UNREACHABLE: (503, "serving_unreachable"),
    Fault.TIMEOUT: (504, "deadline_exceeded"),
}


class Prediction(Counted):
    """The job that a batcher sees, and what becomes of its request."""

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
        "hurried",
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
        # Makes the lanes.
        self._serving = serving
        # What is counted; see `Counted`.
        self._telemetry = telemetry
        self._caller = caller
        self._unit = unit
        self._tenancy = tenancy
        self._cluster = 0
        self._assigned: Lane | None = None
        self._first: tuple[Lane, TritonError, int] | None = None
        # Writes it.
        self._form = form
        # The model, under the generation that the request met.
        self._model = model
        # The tensors.
        self.request = request
        # Monotonic seconds; the loop's own clock is only exact to a millisecond.
        self._arrived_at = arrived_at
        # How long the client waits, at most as long as the model may take.
        self._timeout_s = timeout_s
        # The tenant's class.
        self.priority = tenancy.priority
        # When it was read and routed.
        self._read_at = arrived_at
        # When it was queued for the version it is with now.
        self.submitted_at = arrived_at
        # When the version it is with must have answered.
        self.deadline = arrived_at + timeout_s
        # See `batching.Job`.
        self.hurried = False
        # The lane that the request is in now.
        self._lane: Lane
        # The instant in the id of its answer, nanoseconds since 1970, once it has one.
        self._answered_ns = 0
        # What the cache knows of it, while its answer is to be kept or is waited for.
        self.ticket: Ticket | None = None

    def start(self, version: str | None) -> None:
        """Decide who answers and queue for it. Raises Refusal."""
        model, unit = self._model, self._unit
        router = model.router
        if version is not None:
            decision = router.explicit(version)
        elif router.targeted and not router.means(self._tenancy.name, self._caller.headers):
            decision = router.outside
        else:
            decision, bucket = router.place(unit)
            if decision.split:
                self._cluster = cluster_of_bucket(bucket) if bucket >= 0 else self._client_cluster()
        if unit is not None:
            model.crowd.saw(unit)
        lane = model.lanes.get(decision) or self._serving.lane(model, decision)
        lane.counter.assign(unit, self._cluster)
        self._assigned = lane
        try:
            if decision.exposures:
                # Whatever becomes of the request: only so do variants that lose some compare.
                self._expose(decision)
            self._read_at = monotonic()
            if lane.fallback is not None:
                # What is left of the time is for the fallback.
                first_s = FIRST_ATTEMPT * model.timeout_s
                if first_s < self._timeout_s:
                    self.deadline = self._arrived_at + first_s
            caller = self._caller
            caller.job = self
            cached = lane.cached
            now = self._read_at
            if cached is None or not cached.model.takes(
                self, cached, self._tenancy.name, caller, now
            ):
                self._enter(lane, now)
        except BaseException:
            # Whoever called answers with an error.
            self._end(ends.FAILED)
            raise

    def answered(self, outputs: list[Output], start: int, dispatched_at: float) -> None:
        """Take the rows from `start` on as the answer."""
        written = self._write(outputs, start)
        if written is None:
            return
        headers, body = written
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
        """Go to stable where there is a way, or answer with the failure."""
        runtime = self._lane.runtime
        now = monotonic()
        fault = error.fault
        is_unseen = isinstance(error, Unsent)
        if fault is Fault.REFUSED or is_unseen or error.is_ours or self._nobody_waits(error):
            # What the version never saw, for want of room, says nothing of its health, and neither
            # does what it got too much of.
            runtime.breaker.released()
            if isinstance(error, Shed) and self.deadline != ABANDONED:
                self._shed(self._lane, error.overloaded)
                return
        elif not error.counted:
            error.counted = True
            # Of several endpoints the one that hangs is for the circuits to find.
            hangs = fault is Fault.TIMEOUT and not runtime.copies.circuits
            runtime.breaker.failed(
                now, error.message, dead=fault.is_dead, gone=hangs or fault is Fault.DEAD
            )
        self._end_failed(error, now)

    def _end_failed(self, error: TritonError, now: float) -> None:
        lane = self._lane
        if self._nobody_waits(error):
            gone = self.deadline == ABANDONED
            lane.runtime.stats.count("abandoned" if gone else "expired")
            self._end_unanswered(ends.ABANDONED if gone else ends.EXPIRED)
            self._refuse(Refusal(504, "deadline_exceeded", error.message))
            return
        in_time = now < self._arrived_at + self._timeout_s
        if lane.fallback is not None and in_time and self.deadline != ABANDONED:
            self._fall_back(lane, lane.fallback, error)
            return
        status, code = _REFUSALS[error.fault]
        if error.fault is Fault.REFUSED:
            # Nobody accepted it, so nobody is to blame but the request.
            lane.runtime.stats.count("invalid")
            self._end_unanswered(ends.REFUSED)
        elif self._first is None:
            self._blame(lane, fell_back=False)
        else:
            # Where versions are compared the request counts with the one that failed it first.
            lane.runtime.stats.count("error")
            self._end_unanswered(ends.FAILED)
        retry_after_s = 1 if status == 503 else None
        self._refuse(Refusal(status, code, error.message, retry_after_s=retry_after_s))

    def abandoned(self) -> None:
        """Leave the queue, if it is still there: the client hung up.

        One that the cache knows goes on, for others may wait for its answer. Whatever comes of it,
        the client has no answer of the version.
        """
        self._end_unanswered(ends.ABANDONED)
        if self.ticket is None:
            self.deadline = ABANDONED

    def _nobody_waits(self, error: TritonError) -> bool:
        """Return whether the time ran out for reasons that are none of the version's.

        The client gave little, or the version before left little of it. To hang up once the
        request was sent changes nothing.
        """
        if error.fault is not Fault.TIMEOUT:
            return False
        if self.deadline == ABANDONED and isinstance(error, Unsent):
            return True
        granted_s = self._arrived_at + self._timeout_s - self.submitted_at
        return granted_s < IMPATIENT * self._model.timeout_s

    # --- what the cache calls (see `dataplane.cache.in_flight.Asker`) ----------------------------

    def found(self, lane: Lane, entry: Entry) -> None:
        self._lane = lane
        request = self.request
        if self._form is infer_form and request.outputs is None and not request.binary:
            headers, body = lane.headers, head_of(lane.head, request) + entry.tail
        else:
            route = self._model.route
            written = self._write(entry.outputs(route.signature, batched=route.batched), 0)
            if written is None:
                return
            headers, body = written
        lane.runtime.stats.found(lane.cache_state)
        has_ended = self._assigned is None
        lane.counter.found(has_ended=has_ended)
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

    def go_on(self, lane: Lane) -> None:
        lane.runtime.stats.missed()
        self._enter(lane, monotonic())

    def overdue(self, lane: Lane) -> None:
        self._lane = lane
        message = "the deadline passed while an identical request was under way"
        # The breaker did not let this one in, and hears from the one that it did.
        self._end_failed(TritonError(Fault.TIMEOUT, message), monotonic())

    # --- the way in ----------------------------------------------------------------------------

    def _enter(self, lane: Lane, now: float) -> None:
        self._lane = lane
        self.submitted_at = now
        runtime = lane.runtime
        breaker = runtime.breaker
        if not breaker.calm and not breaker.admits(now, last_resort=lane.fallback is None):
            self._turned_away(lane, "breaker_open", "the version's circuit breaker is open")
            return
        try:
            runtime.batcher.submit(self)
        except QueueFull as full:
            breaker.released()
            self._shed(lane, full)
        except Exception:
            # Those who wait in the cache for the same answer must hear of it.
            log.exception("a request could not be queued")
            breaker.released()
            self._end_failed(TritonError(Fault.FAILED, "the request could not be queued"), now)

    def _turned_away(self, lane: Lane, code: str, message: str) -> None:
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
        """Go to stable if it has room to spare, or refuse. It is no failure of the version."""
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
        """Go to stable; with an answer of its the request ends as `end` says."""
        # Stable's answer must not be kept as this version's.
        ticket, self.ticket = self.ticket, None
        is_refusal = error.fault is Fault.REFUSED
        self._first = (lane, error, ends.REFUSED if is_refusal else end)
        reason = reason or error.fault.value
        fallbacks = lane.runtime.stats.fallbacks
        fallbacks[reason] = fallbacks.get(reason, 0) + 1
        if end != ends.SHED and not is_refusal:
            # A refusal is held against the version only if stable accepts the same request.
            self._blame(lane, fell_back=True)
        timeout_s = self._timeout_s
        self.deadline = self._arrived_at + timeout_s
        now = monotonic()
        self.hurried = self.deadline - now < timeout_s / 2
        self._enter(fallback, now)
        if ticket is not None:
            ticket.failed()

    # --- the way out ---------------------------------------------------------------------------

    def _write(self, outputs: list[Output], start: int) -> tuple[bytes, bytes] | None:
        """Return the answer as it was asked for; None when it cannot be, which was a failure."""
        if self._form is plain_form and (self._answered_ns or self.request.id is None):
            # The client brought no id of its own.
            self._answered_ns = time_ns()
            self.request.id = self._id().decode()
        try:
            return self._form(self._model, self._lane, self.request, outputs, start)
        except NotJson as error:
            self.failed(TritonError(Fault.FAILED, str(error)))
        except Exception:
            # The neighbours in the batch still wait for their rows.
            log.exception("an answer could not be written")
            self.failed(TritonError(Fault.FAILED, "the answer could not be written"))
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
        """Return the answer's id: with the unit that was exposed, and the seal of who asked."""
        lane = self._lane
        exposed = lane if self._first is None else self._first[0]
        unit = b""
        if exposed.decision.exposures and self._unit is not None:
            unit = request_id_unit(self._unit)
        seal = self._tenancy.seal
        sealed = seal.of(lane.id_head) if seal is not None else b""
        return b"%b%x%b%b" % (lane.id_head, self._answered_ns, unit, sealed)

    def _respond(self, headers: bytes, body: bytes, dispatched_at: float, now: float) -> None:
        # Between reading and queueing lies the look-up in the cache, or the version that failed it.
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
        reason = error.message if error.message in _TURNED_AWAY else error.fault.value
        return b"x-interlock-fallback: %b\r\n" % reason.encode()


_TURNED_AWAY = ("breaker_open", "queue_full", "overloaded")
