"""Copies of live requests: which are sent, what they may cost, and how they end.

A copy is created after the live answer was written, and sent in a later turn of the loop. It has
its own connections, queue and breaker, and counts in a budget of copies and of bytes that all
shadows of the process share; beyond the budget it is dropped. It is also dropped while stable has
more rows waiting than its next batch takes, because Triton's time belongs to live traffic first.
Answers are compared a slice at a time, for at most a fifth of the loop's time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from random import randrange
from time import monotonic

from contract.bucketing import BUCKETS, bucket
from contract.messages import ShadowPair, ShadowWindow
from contract.request_ids import answer_key
from contract.routing import ModelRoute, RoutingTable, Shadow
from dataplane.batch_reply import Output
from dataplane.batching import Batcher, QueueFull, Unsent
from dataplane.breaker import Breaker
from dataplane.codec import InferRequest
from dataplane.shadow.comparison import Comparison, Difference, Tolerance
from dataplane.shadow.counting import Clock, Key, ShadowCounter, ShadowTelemetry
from dataplane.triton import Fault, Replicas, Triton, TritonError

log = logging.getLogger("interlock.dataplane")

COPIES_MAX = 64
BYTES_MAX = 64 * 1024 * 1024
# Seconds between two comparisons, and the maximum seconds of one.
PAUSE_S = 0.004
COMPARE_S = 0.001


@dataclass(slots=True)
class ShadowStats:
    """Results of the copies to one version since the table named it as a shadow.

    `results` counts `compared` and `failed`, and dropped copies by reason: `budget`, `busy`,
    `breaker_open`.
    """

    results: dict[str, int] = field(default_factory=dict)
    trips: int = 0

    def count(self, result: str) -> None:
        self.results[result] = self.results.get(result, 0) + 1

    def tripped(self, reason: str) -> None:
        """Record that the breaker opened. It does not count as a trip of a serving version."""
        self.trips += 1
        log.warning("shadow.breaker_open: %s", reason)


@dataclass(slots=True)
class ShadowRuntime:
    """The queue and the breaker of one shadow; `origin` is all that they depend on."""

    origin: tuple[object, ...]
    version: str
    batcher: Batcher
    breaker: Breaker
    stats: ShadowStats


class Copy:
    """The job of the shadow's batcher, with the live answer to compare with."""

    __slots__ = (
        "_answered_ns",
        "_live",
        "_start",
        "_tenant",
        "_unit",
        "comparison",
        "counter",
        "deadline",
        "difference",
        "held_bytes",
        "is_urgent",
        "mirror",
        "priority",
        "request",
        "submitted_at",
    )

    def __init__(
        self,
        mirror: Mirror,
        request: InferRequest,
        outputs: list[Output],
        start: int,
        unit: str | None,
        answered_ns: int,
        tenant: str,
    ) -> None:
        # The mirror that created it.
        self.mirror = mirror
        # Its counter, whatever table is applied by then.
        self.counter: ShadowCounter = mirror.shadows.telemetry.counter(mirror.key)
        # The tensors of the live request, not copied.
        self.request = request
        # The outputs of the live batch.
        self._live = outputs
        # Where the rows of the request begin in them.
        self._start = start
        # The tenant, the unit, and the time in the id of the answer.
        self._tenant = tenant
        self._unit = unit
        self._answered_ns = answered_ns
        # Bytes that it keeps in memory, as counted in the budget.
        self.held_bytes = 0
        # See `batching.Job`.
        self.deadline = 0.0
        # See `batching.Job`.
        self.is_urgent = False
        # See `batching.Job`; copies have a queue of their own, with one priority.
        self.priority = 1
        # When it joined the shadow's queue.
        self.submitted_at = 0.0
        # The rest of the comparison, once both answers are there.
        self.comparison: Iterator[Difference]
        # The differences so far.
        self.difference = Difference()

    def answered(self, outputs: list[Output], start: int, dispatched_at: float) -> None:
        """Compare the shadow's answer."""
        mirror = self.mirror
        now = monotonic()
        mirror.runtime.breaker.succeeded()
        self.counter.answered((now - self.submitted_at) * 1e6)
        comparison = Comparison(
            (self._live, self._start), (outputs, start), self.request.rows, mirror.tolerance
        )
        self.comparison = comparison.slices()
        # Chosen before the comparison: the content of a pair must not decide whether it is kept.
        if mirror.pairs and self.request.rows == 1 and self.counter.takes_pair():
            self._keep_pair(comparison)
        mirror.shadows.compare(self, sum(output.size_bytes for output in outputs))

    def _keep_pair(self, comparison: Comparison) -> None:
        try:
            classes, scores = comparison.classes(), comparison.scores()
        except Exception:
            # An answer that cannot be read fails the comparison as well, which counts and logs it.
            return
        self.counter.keep(
            ShadowPair(
                shadow=self.mirror.key[-1],
                request=answer_key(self.mirror.process, self._answered_ns),
                at_ms=self._answered_ns // 1_000_000,
                unit=self._unit or "",
                tenant=self._tenant,
                stable_class=classes[0],
                shadow_class=classes[1],
                stable_score=scores[0],
                shadow_score=scores[1],
            )
        )

    def failed(self, error: TritonError) -> None:
        """Count that the shadow failed where stable did not."""
        breaker = self.mirror.runtime.breaker
        if isinstance(error, Unsent):
            breaker.released()
            self.mirror.shadows.end(self, "budget")
            return
        if error.fault is Fault.REFUSED or error.is_ours:
            breaker.released()
        elif not error.counted:
            error.counted = True
            breaker.failed(
                monotonic(),
                error.message,
                dead=error.fault.is_dead,
                unreachable=error.fault is Fault.DEAD,
            )
        self.mirror.shadows.end(self, "failed")

    def weigh(self) -> int:
        """Return the bytes that it keeps alive: the request, and the whole live reply."""
        tensors = sum(map(len, self.request.tensors))
        return tensors + sum(output.size_bytes for output in self._live)


class Mirror:
    """Decides which answers of one stable version are copied, under one generation."""

    __slots__ = (
        "_live",
        "_salt",
        "_share_bp",
        "key",
        "pairs",
        "process",
        "runtime",
        "shadows",
        "timeout_s",
        "tolerance",
    )

    def __init__(
        self,
        shadows: Shadows,
        runtime: ShadowRuntime,
        live: Batcher,
        route: ModelRoute,
        settings: Shadow,
        key: Key,
        process: str,
    ) -> None:
        # Enforces the budget.
        self.shadows = shadows
        # The shadow's queue and breaker.
        self.runtime = runtime
        # The queue of stable, which has priority.
        self._live = live
        # A salt of its own, so that its units are independent of the split.
        self._salt = settings.salt
        # Units in buckets below this are copied.
        self._share_bp = settings.share_bp
        # The tolerance for outputs to agree.
        self.tolerance = Tolerance(settings.absolute_tolerance, settings.relative_tolerance)
        # The timeout of a copy.
        self.timeout_s = route.timeout_ms / 1000
        # The key of its windows.
        self.key = key
        # Whether some pairs of answers are kept.
        self.pairs = settings.pairs
        # The process part of answer ids.
        self.process = process

    @property
    def live_is_busy(self) -> bool:
        """Whether stable has more to do than its next batch, or refused a request recently."""
        return self._live.is_strained(monotonic())

    def offer(
        self,
        request: InferRequest,
        outputs: list[Output],
        start: int,
        unit: str | None,
        answered_ns: int,
        tenant: str = "",
    ) -> None:
        """Copy `request`, which stable answered with the rows from `start` on, if it is sampled.

        `answered_ns` is the time in the answer's id. Never raises: the caller still has other
        answers to write.
        """
        try:
            point = bucket(self._salt, unit) if unit is not None else randrange(BUCKETS)  # noqa: S311
            if point < self._share_bp:
                self.shadows.take(Copy(self, request, outputs, start, unit, answered_ns, tenant))
        except Exception:
            log.exception("a request could not be copied")

    def drop(self, reason: str) -> None:
        """Count a copy that is not sent."""
        self.shadows.telemetry.counter(self.key).drop()
        self.runtime.stats.count(reason)


class Shadows:
    """The shared parts of all shadows of the process: connections, budget, time to compare."""

    def __init__(
        self,
        triton: Triton,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        *,
        batches_max: int = 2,
        copies_max: int = COPIES_MAX,
        bytes_max: int = BYTES_MAX,
    ) -> None:
        # Sends the copies, on connections that no live request uses.
        self._triton = triton
        # Runs deferred work.
        self._loop = loop
        # Maximum batches of one shadow in flight.
        self._batches_max = batches_max
        # Maximum copies at one time.
        self._copies_max = copies_max
        # Maximum bytes that they keep in memory.
        self._bytes_max = bytes_max
        # Counts the copies.
        self.telemetry = ShadowTelemetry(clock)
        # Copies that wait, are in flight or are being compared.
        self.copies = 0
        # Bytes that they keep in memory.
        self.held_bytes = 0
        # Shadows with requests, by model: a model has one at a time.
        self._runtimes: dict[str, ShadowRuntime] = {}
        # Copies created in this turn of the loop, to be sent in the next.
        self._taken: deque[Copy] = deque()
        # Copies with both answers.
        self._comparing: deque[Copy] = deque()
        # Whether `_compare_some` is scheduled.
        self._compare_due = False

    def apply(
        self, table: RoutingTable, addresses: set[str], changed: Iterable[str] | None = None
    ) -> None:
        """Forget the shadows that `table` does not have; `addresses` are its endpoints.

        `changed` names at least the models that differ from the applied table; None means all.
        """
        for name in list(self._runtimes) if changed is None else changed:
            runtime = self._runtimes.get(name)
            if runtime is not None and not _has_shadow(table, name, runtime.version):
                del self._runtimes[name]
        self._triton.keep_only(addresses)

    def mirror(
        self, name: str, route: ModelRoute, table: RoutingTable, live: Batcher, process: str
    ) -> Mirror | None:
        """Return the mirror of the requests that `live` answers for stable, None without a shadow.

        `process` is the process part of the ids of the answers.
        """
        settings = route.shadow
        if settings is None or settings.share_bp == 0 or route.stable is None:
            return None
        key = (name, settings.version, route.stable, table.generation, settings.id)
        runtime = self._runtime(name, route, settings, table)
        return Mirror(self, runtime, live, route, settings, key, process)

    def drain(self) -> list[ShadowWindow]:
        return self.telemetry.drain()

    def drain_pairs(self) -> list[ShadowPair]:
        return self.telemetry.drain_pairs()

    def runtimes(self) -> Iterator[tuple[str, str, ShadowRuntime]]:
        """Yield model, version and runtime of each shadow with requests."""
        for name, runtime in self._runtimes.items():
            yield name, runtime.version, runtime

    def close(self) -> None:
        """Close the idle connections."""
        self._triton.close()

    # --- sending -------------------------------------------------------------------------------

    def take(self, copy: Copy) -> None:
        """Queue a copy for the next turn of the loop: the live answers of this turn go first."""
        if self.copies >= self._copies_max:
            copy.mirror.drop("budget")
            return
        self.copies += 1
        copy.counter.outstanding += 1
        if not self._taken:
            self._loop.call_soon(self._send_taken)
        self._taken.append(copy)

    def _send_taken(self) -> None:
        taken, self._taken = self._taken, deque()
        for copy in taken:
            reason = self._reason_against(copy)
            if reason is None:
                self._send(copy)
            else:
                self.end(copy, reason)

    def _reason_against(self, copy: Copy) -> str | None:
        """Return why `copy` may not be sent; charge the budget if it may."""
        mirror = copy.mirror
        if mirror.live_is_busy:
            return "busy"
        weight = copy.weigh()
        if self.held_bytes + weight > self._bytes_max:
            return "budget"
        breaker = mirror.runtime.breaker
        if not breaker.calm and not breaker.admits(monotonic()):
            return "breaker_open"
        self._hold(copy, weight)
        return None

    def _send(self, copy: Copy) -> None:
        runtime = copy.mirror.runtime
        copy.submitted_at = monotonic()
        copy.deadline = copy.submitted_at + copy.mirror.timeout_s
        try:
            runtime.batcher.submit(copy)
        except QueueFull:
            runtime.breaker.released()
            self.end(copy, "budget")

    # --- comparing -----------------------------------------------------------------------------

    def compare(self, copy: Copy, reply_bytes: int) -> None:
        """Queue a copy that has both answers; `reply_bytes` is the size of the second."""
        if self.held_bytes + reply_bytes > self._bytes_max:
            self.end(copy, "budget")
            return
        self._hold(copy, reply_bytes)
        self._comparing.append(copy)
        if not self._compare_due:
            self._compare_due = True
            self._loop.call_later(PAUSE_S, self._compare_some)

    def _compare_some(self) -> None:
        until = monotonic() + COMPARE_S
        while self._comparing and monotonic() < until:
            copy = self._comparing[0]
            result = self._compare_slice(copy)
            if result is not None:
                self._comparing.popleft()
                self.end(copy, result)
        self._compare_due = bool(self._comparing)
        if self._compare_due:
            self._loop.call_later(PAUSE_S, self._compare_some)

    def _compare_slice(self, copy: Copy) -> str | None:
        """Compare a few rows; return the result of the copy once there is one."""
        try:
            part = next(copy.comparison, None)
        except Exception:
            # Stable's answer was read before, so the shadow's is at fault.
            log.exception("the answer of a shadow cannot be compared")
            return "failed"
        if part is None:
            return "compared"
        copy.difference.add(part)
        return None

    def end(self, copy: Copy, result: str) -> None:
        """Count the result of `copy`, and release its budget."""
        counter = copy.counter
        if result == "compared":
            counter.differed(copy.difference)
        elif result == "failed":
            counter.failed()
        else:
            counter.drop()
        copy.mirror.runtime.stats.count(result)
        counter.outstanding -= 1
        self.copies -= 1
        self.held_bytes -= copy.held_bytes

    def _hold(self, copy: Copy, weight: int) -> None:
        copy.held_bytes += weight
        self.held_bytes += weight

    def _runtime(
        self, name: str, route: ModelRoute, settings: Shadow, table: RoutingTable
    ) -> ShadowRuntime:
        versioned = route.versions[settings.version]
        addresses = table.clusters[versioned.cluster].endpoints
        origin = (
            versioned, addresses, route.signature, route.batched, route.batching, route.breaker,
        )  # fmt: skip
        runtime = self._runtimes.get(name)
        if runtime is not None and runtime.version == settings.version:
            if runtime.origin == origin:
                return runtime
            stats = runtime.stats
        else:
            stats = ShadowStats()
        batcher = Batcher(
            route,
            versioned,
            # Retries on other endpoints, but no hedging.
            Replicas(addresses, route.breaker),
            self._triton,
            self._loop,
            _ignore,
            self._batches_max,
        )
        breaker = Breaker(route.breaker, stats.tripped)
        runtime = ShadowRuntime(origin, settings.version, batcher, breaker, stats)
        self._runtimes[name] = runtime
        return runtime


def _has_shadow(table: RoutingTable, name: str, version: str) -> bool:
    model = table.models.get(name)
    return model is not None and model.shadow is not None and model.shadow.version == version


def _ignore(rows: int) -> None:
    """Do nothing: batches of copies do not count for the version."""
