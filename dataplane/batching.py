"""Groups requests for one version into batches, and gives each request its own rows.

An idle version gets the waiting requests at once; a busy one gets a batch when it is full, or when
its oldest request has waited for the model's delay. Several batches may be in flight. The fair
queue decides the order; `Pace` decides the size of a batch, and whether a request can be answered
in time. A request that cannot is refused before it joins the queue, or before it is sent if that
becomes clear later. A batch that the version answers with an error is sent again request by
request, so that a bad row fails alone. Every job ends exactly once, whatever a job, Triton or a
reply does.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from math import ceil
from time import monotonic

from contract.routing import ModelRoute, VersionRoute
from dataplane.batch_encoding import Encoder
from dataplane.batch_latency import RESERVE, Pace
from dataplane.batch_reply import ReplyReader
from dataplane.fair_queue import ABANDONED, CLASSES, WEIGHTS, Batch, FairQueue, Job
from dataplane.triton import Fault, Replicas, Reply, Triton, TritonError, Unsent

__all__ = ["Batcher", "Job", "Overloaded", "QueueFull", "Shed", "Unsent"]

log = logging.getLogger("interlock.dataplane")

# Seconds after a refusal for which a version counts as overloaded.
_STRAINED_S = 1.0
# Interval, as a share of the timeout, of the search for requests that wait in vain.
_WATCH = 0.05
# Deadlines within this many seconds share the first of them; otherwise each job's own deadline is
# watched, so that one impatient client takes no time from the others in its batch.
_CLOSE_S = 0.02


class QueueFull(Exception):
    """The version's queue is full; after `retry_after_s` it should not be."""

    code = "queue_full"
    message = "the version has too many requests waiting"

    def __init__(self, drained_in_s: float) -> None:
        super().__init__(self.message)
        # Whole seconds, at least one.
        self.retry_after_s = max(1, ceil(drained_in_s))


class Overloaded(QueueFull):
    """The request would miss its deadline at the current speed of the version."""

    code = "overloaded"
    message = "the version is too busy to answer before the deadline"


class Shed(Unsent):
    """A queued job that could no longer be answered in time; it was not sent."""

    def __init__(self, overloaded: Overloaded) -> None:
        super().__init__(overloaded.message)
        # The refusal that a new request would get now.
        self.overloaded = overloaded


class Batcher:
    """The queue of one version."""

    def __init__(
        self,
        model: ModelRoute,
        version: VersionRoute,
        addresses: Replicas | tuple[str, ...],
        triton: Triton,
        loop: asyncio.AbstractEventLoop,
        on_batch: Callable[[int], None],
        in_flight_max: int = 4,
        instances: int = 1,
    ) -> None:
        # Decodes the replies.
        self._reader = ReplyReader(model.signature, batched=model.batched)
        # Maximum rows in the queue.
        self._waiting_max = model.batching.max_queue_size
        # The endpoints of the version's cluster.
        self._addresses = addresses
        # Sends the calls.
        self._triton = triton
        # Runs the timers.
        self._loop = loop
        # Called with the number of rows of each batch that is sent.
        self._on_batch = on_batch
        # Maximum batches in flight.
        self._in_flight_max = in_flight_max
        # The timeout of requests.
        self._timeout_s = model.timeout_ms / 1000
        # Rows of a full batch; 1 if there is no batch dimension, so that requests stay apart.
        batch_max = model.batching.max_batch_size if model.batched else 1
        # How long a batch that is not full may wait for more.
        self._delay_s = model.batching.max_queue_delay_us / 1e6
        # Requests that wait for a batch to fill.
        self._queue = FairQueue(1, self._delay_s)
        # Second attempts: batches of one request, ahead of the queue.
        self._alone: deque[Job] = deque()
        # The rows of the second attempts.
        self._alone_rows = 0
        # Batches in flight.
        self.in_flight = 0
        # Whether `_start_idle` is scheduled.
        self._starting = False
        # Fires when the oldest request of a line has waited for the delay.
        self._timer: asyncio.TimerHandle | None = None
        # Fires while requests wait for a place in flight, to shed those that wait in vain.
        self._watch: asyncio.TimerHandle | None = None
        # Estimates how fast the version answers.
        endpoints = len(addresses.addresses if isinstance(addresses, Replicas) else addresses)
        lanes = min(endpoints * instances, in_flight_max)
        self._pace = Pace(batch_max, self._timeout_s, lanes)
        # When a request was last refused because of the load; monotonic.
        self._refused_at = float("-inf")
        # Encodes the calls.
        self._encode = Encoder(model, version).encode

    @property
    def waiting_rows(self) -> int:
        """Rows that wait to be sent."""
        return self._queue.rows + self._alone_rows

    def submit(self, job: Job) -> None:
        """Queue `job`. Raises QueueFull, or its subclass Overloaded."""
        queue = self._queue
        request = job.request
        own = request.rows
        rows = queue.rows + self._alone_rows + own
        pace = self._pace
        if rows > self._waiting_max:
            self._refused_at = job.submitted_at
            raise QueueFull(pace.drained_in_s(rows))
        if (
            job.deadline < job.submitted_at + pace.quick_s + rows * pace.row_bound_s
            and 0 < self._done_in_s(job) > job.deadline - job.submitted_at
        ):
            self._refused_at = job.submitted_at
            raise Overloaded(pace.drained_in_s(rows))
        if queue.put(job, request.key, own):
            self._send_ready()
        elif self.in_flight == 0:
            self._start_soon()
        elif self._timer is None:
            self._timer = self._loop.call_later(self._delay_s, self._overdue)

    def has_room(self, rows: int) -> bool:
        """Return whether requests of other versions may fall back to this one.

        At least half the queue is free, and what waits is sent within half of the timeout.
        """
        rows += self.waiting_rows
        return (
            2 * rows <= self._waiting_max and 2 * self._pace.drained_in_s(rows) <= self._timeout_s
        )

    def is_strained(self, now: float) -> bool:
        """Return whether more waits than one batch, or a request was refused recently."""
        waits = self.waiting_rows > self._pace.batch_rows
        return waits or now - self._refused_at < _STRAINED_S

    def _done_in_s(self, job: Job) -> float:
        """Return the seconds until `job` would be answered if it joined now, 0 if unknown."""
        priority = job.priority
        waiting = self._queue.waiting
        rows = job.request.rows
        own = waiting[priority] + rows
        ahead: float = self._alone_rows + waiting[priority]
        for other in CLASSES:
            if other != priority:
                # While its own class sends this much, another class gets no more than its share.
                ahead += min(waiting[other], own * WEIGHTS[other] / WEIGHTS[priority])
        if self.in_flight == 0 and not ahead:
            # Whether to try it is decided when it would be sent.
            return 0.0
        reserve_s = RESERVE * self._timeout_s
        return self._pace.done_in_s(int(ahead), rows, job.submitted_at, reserve_s)

    # --- when a batch is sent ------------------------------------------------------------------

    def _start_soon(self) -> None:
        # One turn later, so that requests of the same turn of the loop join the batch.
        if not self._starting:
            self._starting = True
            self._loop.call_soon(self._start_idle)

    def _start_idle(self) -> None:
        self._starting = False
        if self.in_flight == 0 and not self._alone and not self._queue.due_lines:
            self._queue.mark_oldest_due()
        self._send_ready()
        if self._queue.rows and self._timer is None:
            self._timer = self._loop.call_later(self._delay_s, self._overdue)

    def _overdue(self) -> None:
        # One timer for all lines: it is not moved for each batch that is sent earlier.
        next_in_s = self._queue.mark_due(monotonic())
        self._timer = None
        if next_in_s is not None:
            self._timer = self._loop.call_later(next_in_s, self._overdue)
        self._send_ready()

    def _send_ready(self) -> None:
        queue = self._queue
        pace = self._pace
        while self.in_flight < self._in_flight_max and (self._alone or queue.due_lines):
            now = monotonic()
            if not pace.is_trifling:
                if self.in_flight >= pace.places(self._in_flight_max, now):
                    self._shed_hopeless(now)
                    self._look_again_soon()
                    return
                if not self._alone:
                    self._shed_hopeless(now)
                    if not queue.due_lines:
                        return
            if self._alone:
                job = self._alone.popleft()
                rows = job.request.rows
                self._alone_rows -= rows
                batch = Batch([job], rows, now)
            elif pace.is_trifling:
                batch = queue.take(now)
            else:
                left_s = queue.head().deadline - now
                batch = queue.take(now, pace.rows_in(left_s, now))
            if batch.jobs:
                self._send(batch, now)
            if batch.late:
                error = Unsent()
                for job in batch.late:
                    self._fail(job, error)

    def _shed_hopeless(self, now: float) -> None:
        """Shed the next requests that cannot be answered in time."""
        queue = self._queue
        late, hopeless = [], []
        while queue.due_lines:
            job = queue.head()
            if job.deadline <= now:
                late.append(queue.drop(now))
            elif self._is_possible(job, now):
                break
            else:
                hopeless.append(queue.drop(now))
        # Not at once: the callback may submit the next request.
        if late:
            self._loop.call_soon(self._fail_all, late, Unsent())
        if hopeless:
            self._refused_at = now
            error = Shed(Overloaded(self._pace.drained_in_s(self.waiting_rows)))
            self._loop.call_soon(self._fail_all, hopeless, error)

    def _look_again_soon(self) -> None:
        """Schedule another look for requests that wait behind a version that does not answer."""
        if self._watch is None and self._queue.due_lines:
            self._watch = self._loop.call_later(_WATCH * self._timeout_s, self._look_again)

    def _look_again(self) -> None:
        self._watch = None
        self._send_ready()

    def _is_possible(self, job: Job, now: float) -> bool:
        rows, left_s = job.request.rows, job.deadline - now
        if self.in_flight == 0:
            return self._pace.may_try(rows, left_s, now)
        return self._pace.done_in_s(0, rows, now) <= left_s

    # --- one batch -----------------------------------------------------------------------------

    def _send(self, batch: Batch, now: float) -> None:
        self.in_flight += 1
        if not self._pace.is_trifling:
            batch.cost_s = self._pace.sent(batch.rows, now)
        batch.sent_at = now
        until = batch.soonest
        if batch.latest - until > _CLOSE_S:
            batch.timer = self._loop.call_later(until - now, self._expire, batch)
            until = batch.latest

        def done(result: Reply | TritonError) -> None:
            self._done(batch, result, now)

        try:
            self._on_batch(batch.rows)
            request = self._encode(batch.jobs, batch.rows, until - now)
            self._triton.post(self._addresses, request, until - now, done)
        except Exception:
            # No job may wait for ever, and the place in flight must be released.
            log.exception("a batch could not be sent")
            # Not at once: a queue full of such batches would recurse.
            error = TritonError(Fault.FAILED, "the batch could not be sent")
            self._loop.call_soon(done, error)

    def _expire(self, batch: Batch) -> None:
        """Fail the jobs of a batch in flight whose own deadline has passed."""
        now = monotonic()
        late = [
            job
            for job in batch.jobs
            if ABANDONED < job.deadline <= now and job not in batch.expired
        ]
        batch.expired = [*batch.expired, *late]
        left = [job.deadline for job in batch.jobs if job.deadline > now]
        if left and batch.latest - min(left) > _CLOSE_S:
            batch.timer = self._loop.call_later(min(left) - now, self._expire, batch)
        error = TritonError(Fault.TIMEOUT, "no answer before the deadline")
        error.is_ours = not self._pace.is_silent(batch.rows, batch.sent_at, now)
        self._fail_all(late, error)

    def _done(self, batch: Batch, result: Reply | TritonError, dispatched_at: float) -> None:
        if batch.ended:
            return
        batch.ended = True
        if batch.timer is not None:
            batch.timer.cancel()
        self.in_flight -= 1
        try:
            if isinstance(result, TritonError):
                raise result
            outputs = self._reader.read(result, batch.rows)
        except TritonError as error:
            self._batch_failed(batch, error)
        except Exception:
            log.exception("a reply could not be read")
            self._batch_failed(batch, TritonError(Fault.FAILED, "the reply could not be read"))
        else:
            self._pace.answered(batch.rows, batch.cost_s, dispatched_at, monotonic())
            self._queue.rows_max = self._pace.batch_rows
            expired = batch.expired
            start = 0
            for job in batch.jobs:
                try:
                    if not expired or job not in expired:
                        job.answered(outputs, start, dispatched_at)
                except Exception:
                    # The other jobs of the batch still wait for their rows.
                    log.exception("a job could not take its answer")
                start += job.request.rows
        self._send_ready()
        if self.in_flight == 0 and self._queue.rows:
            self._start_soon()

    def _learn_failure(self, batch: Batch, error: TritonError) -> None:
        pace, rows, cost_s = self._pace, batch.rows, batch.cost_s
        if error.fault in (Fault.FAILED, Fault.REFUSED):
            pace.ended(rows, cost_s, monotonic())
        elif error.fault is Fault.TIMEOUT and not isinstance(error, Unsent):
            error.is_ours = not pace.lost(rows, cost_s, batch.sent_at, monotonic())
            self._queue.rows_max = pace.batch_rows
        else:
            pace.vanished(rows, cost_s)

    def _batch_failed(self, batch: Batch, error: TritonError) -> None:
        error.counted = False
        self._learn_failure(batch, error)
        jobs = batch.jobs
        if batch.expired:
            jobs = [job for job in jobs if job not in batch.expired]
        if error.fault.is_dead or len(batch.jobs) == 1:
            for job in jobs:
                self._fail(job, error)
            return
        # One bad row may be at fault: each job is sent again by itself, ahead of the queue.
        self._alone_rows += sum(job.request.rows for job in jobs)
        self._alone.extendleft(reversed(jobs))

    def _fail_all(self, jobs: list[Job], error: TritonError) -> None:
        for job in jobs:
            self._fail(job, error)

    def _fail(self, job: Job, error: TritonError) -> None:
        try:
            job.failed(error)
        except Exception:
            log.exception("a job could not take its failure")
