"""Puts requests for one version together into batches, and gives each its own rows back.

An idle version gets what is there at once; a busy one gets a batch when it is full or when its
oldest request has waited for the model's delay. Several batches may be in flight. Only requests
with the same key (shapes and parameters) meet in a batch. A batch that the version answers with an
error is sent again request by request, so that a poison row fails alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Protocol

import orjson

from contract.routing import Batching, ModelRoute, VersionRoute
from dataplane.codec import InferRequest
from dataplane.reply import Output, read_reply
from dataplane.triton import Fault, Reply, Triton, TritonError

_HEADERS_MAX = 256


class Job(Protocol):
    """A request that waits for its rows; exactly one of the two methods is called, once.

    `deadline` is on `time.monotonic`. `hurried` says that little time is left: such a request
    travels alone, because a batch has no more time than the most hurried of its requests.
    """

    request: InferRequest
    deadline: float
    hurried: bool

    def answered(self, outputs: list[Output], start: int, dispatched_at: float) -> None: ...

    def failed(self, error: TritonError) -> None: ...


class QueueFull(Exception):
    """The version has as many rows waiting as it may."""


class _Group:
    """Jobs that may share a batch, not yet sent. `rows` never passes the largest batch."""

    __slots__ = ("jobs", "rows", "timer")

    def __init__(self) -> None:
        # In the order of their rows in the batch.
        self.jobs: list[Job] = []
        # The rows of all of them.
        self.rows = 0
        # Fires when the oldest of them has waited long enough.
        self.timer: asyncio.TimerHandle | None = None


def _alone(job: Job) -> _Group:
    group = _Group()
    group.jobs.append(job)
    group.rows = job.request.rows
    return group


class Batcher:
    """The queue of one version."""

    def __init__(
        self,
        model: ModelRoute,
        version: VersionRoute,
        addresses: tuple[str, ...],
        triton: Triton,
        loop: asyncio.AbstractEventLoop,
        on_batch: Callable[[int], None],
        in_flight_max: int = 4,
    ) -> None:
        # What the answers must hold, and whether rows may be put together at all.
        self._model = model
        # Rows of a full batch; 1 keeps requests apart where there is no batch dimension.
        self._rows_max = model.batching.max_batch_size if model.batched else 1
        # Delay and bounds.
        self._settings: Batching = model.batching
        # The endpoints of the version's cluster.
        self._addresses = addresses
        # Sends the calls.
        self._triton = triton
        # Runs the timers.
        self._loop = loop
        # Told the number of rows of each batch that leaves.
        self._on_batch = on_batch
        # Batches that may be under way at once.
        self._in_flight_max = in_flight_max
        # Batches that still fill, by key, the oldest first.
        self._filling: dict[object, _Group] = {}
        # Batches that only wait for one of the places in flight.
        self._ready: deque[_Group] = deque()
        # Rows that wait for a batch to leave.
        self.waiting_rows = 0
        # Batches under way.
        self.in_flight = 0
        # A turn of `_start_idle` is due.
        self._starting = False
        # The part of each call's head that never changes.
        self._path = b"POST /v2/models/%b/versions/%b/infer HTTP/1.1\r\nhost: triton\r\n" % (
            version.triton_model.encode(),
            version.triton_version.encode(),
        )
        # BYTES elements differ in length; elsewhere key and rows fix the size of every tensor.
        self._sizes_fixed = all(t.datatype != "BYTES" for t in model.signature.inputs)
        # The JSON before the tensors, by what it depends on; bounded.
        self._headers: dict[tuple[object, int], bytes] = {}

    def submit(self, job: Job) -> None:
        """Queue `job`. Raises QueueFull."""
        request = job.request
        rows = request.rows
        if self.waiting_rows + rows > self._settings.max_queue_size:
            raise QueueFull
        self.waiting_rows += rows
        if job.hurried:
            self._ready.append(_alone(job))
            self._send_ready()
            return
        group = self._filling.get(request.key)
        if group is not None and group.rows + rows > self._rows_max:
            self._seal(request.key, group)
            group = None
        if group is None:
            group = self._fill(request.key)
        group.jobs.append(job)
        group.rows += rows
        if group.rows >= self._rows_max:
            self._seal(request.key, group)
            self._send_ready()
        elif self.in_flight == 0:
            self._start_soon()

    # --- when a batch leaves -------------------------------------------------------------------

    def _start_soon(self) -> None:
        # One turn later: the requests that arrived in the same turn of the loop go along.
        if not self._starting:
            self._starting = True
            self._loop.call_soon(self._start_idle)

    def _start_idle(self) -> None:
        self._starting = False
        if self.in_flight == 0 and not self._ready and self._filling:
            key = next(iter(self._filling))
            self._seal(key, self._filling[key])
        self._send_ready()

    def _fill(self, key: object) -> _Group:
        group = self._filling[key] = _Group()
        delay_s = self._settings.max_queue_delay_us / 1e6
        group.timer = self._loop.call_later(delay_s, self._overdue, key, group)
        return group

    def _overdue(self, key: object, group: _Group) -> None:
        group.timer = None
        if self._filling.get(key) is group:
            self._seal(key, group)
            self._send_ready()

    def _seal(self, key: object, group: _Group) -> None:
        del self._filling[key]
        if group.timer is not None:
            group.timer.cancel()
            group.timer = None
        self._ready.append(group)

    def _send_ready(self) -> None:
        while self._ready and self.in_flight < self._in_flight_max:
            self._send(self._ready.popleft())

    # --- one batch -----------------------------------------------------------------------------

    def _send(self, group: _Group) -> None:
        now = monotonic()
        self.waiting_rows -= group.rows
        late = [job for job in group.jobs if job.deadline <= now]
        if late:
            group.jobs = [job for job in group.jobs if job.deadline > now]
            group.rows = sum(job.request.rows for job in group.jobs)
            for job in late:
                job.failed(TritonError(Fault.TIMEOUT, "the deadline passed in the queue"))
            if not group.jobs:
                return
        self.in_flight += 1
        self._on_batch(group.rows)

        def done(result: Reply | TritonError) -> None:
            self._done(group, result, now)

        timeout_s = min(job.deadline for job in group.jobs) - now
        self._triton.post(self._addresses, self._encode(group), timeout_s, done)

    def _done(self, group: _Group, result: Reply | TritonError, dispatched_at: float) -> None:
        self.in_flight -= 1
        try:
            if isinstance(result, TritonError):
                raise result
            outputs = read_reply(
                result, self._model.signature, group.rows, batched=self._model.batched
            )
        except TritonError as error:
            self._batch_failed(group, error)
        else:
            start = 0
            for job in group.jobs:
                job.answered(outputs, start, dispatched_at)
                start += job.request.rows
        self._send_ready()
        if self.in_flight == 0 and self._filling:
            self._start_soon()

    def _batch_failed(self, group: _Group, error: TritonError) -> None:
        if error.fault.is_dead or len(group.jobs) == 1:
            for job in group.jobs:
                job.failed(error)
            return
        # Somebody's row may be at fault: each goes again by itself, ahead of what waits.
        self.waiting_rows += group.rows
        self._ready.extendleft(_alone(job) for job in reversed(group.jobs))

    def _encode(self, group: _Group) -> bytes:
        first = group.jobs[0].request
        key = (first.key, group.rows)
        header = self._headers.get(key)
        if header is None:
            header = self._header(group)
            if self._sizes_fixed:
                if len(self._headers) >= _HEADERS_MAX:
                    self._headers.clear()
                self._headers[key] = header
        if len(group.jobs) == 1:
            tensors = first.tensors
        else:
            tensors = [
                b"".join([job.request.tensors[i] for job in group.jobs])
                for i in range(len(first.tensors))
            ]
        size = len(header) + sum(map(len, tensors))
        return b"%binference-header-content-length: %d\r\ncontent-length: %d\r\n\r\n%b%b" % (
            self._path,
            len(header),
            size,
            header,
            b"".join(tensors),
        )

    def _header(self, group: _Group) -> bytes:
        request = group.jobs[0].request
        inputs = []
        for i, tensor in enumerate(self._model.signature.inputs):
            inner = list(request.inner[i])
            inputs.append(
                {
                    "name": tensor.name,
                    "datatype": tensor.datatype,
                    "shape": [group.rows, *inner] if self._model.batched else inner,
                    "parameters": {
                        "binary_data_size": sum(len(job.request.tensors[i]) for job in group.jobs)
                    },
                }
            )
        parameters = orjson.loads(request.parameters) if request.parameters else {}
        parameters["binary_data_output"] = True
        return orjson.dumps({"inputs": inputs, "parameters": parameters})
