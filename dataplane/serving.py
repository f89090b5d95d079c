"""The applied routing table at run time: codecs, routers, batchers, breakers.

A table is applied by replacing one reference. Expensive objects are created when a model first gets
a request, so that a table of ten thousand models applies at once. Batchers and breakers of a
version outlive the table while nothing about the version changes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from secrets import token_hex

import orjson

from contract.messages import BreakerTrip
from contract.request_ids import request_id_head
from contract.routing import BASELINE, EXPLICIT, CanarySplit, ModelRoute, RoutingTable, VersionRoute
from dataplane.admission import Admission
from dataplane.batching import Batcher
from dataplane.breaker import Breaker
from dataplane.cache import Cache, CachedLane, ModelCache
from dataplane.codec import Codec
from dataplane.errors import Refusal, unavailable
from dataplane.exchange import JSON
from dataplane.metrics import VersionStats
from dataplane.pin_file import PIN_ALL
from dataplane.router import Decision, Router
from dataplane.shadow.mirror import Mirror, Shadows
from dataplane.table_reader import removed_versions
from dataplane.telemetry import DEFAULT_INTERVAL_S, Telemetry
from dataplane.triton import Replicas, Triton
from dataplane.unit_sketch import Sketch
from dataplane.window_counter import Counter

TRIPS_MAX = 200
# A report carries all trips, so each reason must be short.
REASON_LENGTH_MAX = 300
_BINARY = b"content-type: application/octet-stream\r\n"
# The share of a request's time that a version with a fallback may use.
FIRST_ATTEMPT = 0.75


@dataclass(slots=True)
class VersionRuntime:
    """The queue and the breaker of one version; `origin` is all that they depend on.

    `batchers` are all queues of the version: this one, and that of the baseline or of everything
    else.
    """

    origin: tuple[object, ...]
    batcher: Batcher
    breaker: Breaker
    stats: VersionStats
    replicas: Replicas
    batchers: list[Batcher]


@dataclass(slots=True, eq=False)
class Lane:
    """Everything that a request needs once it is routed.

    `fallback` is the lane after a failure of this version, None if there is none. `mirror` copies
    the request to a shadow after the answer, None without a shadow. `cached` leads through the
    cache, None if that is off; `cache_state` is its value in the headers. `id_head` is the prefix
    of the ids of answers (`contract.request_ids`).
    """

    decision: Decision
    runtime: VersionRuntime
    counter: Counter
    head: bytes
    provenance: bytes
    headers: bytes
    binary_headers: bytes
    fallback: Lane | None
    mirror: Mirror | None = None
    cached: CachedLane | None = None
    cache_state: str = "bypass"
    id_head: bytes = b""


@dataclass(slots=True, eq=False)
class LiveModel:
    """One model under one generation."""

    name: str
    route: ModelRoute
    codec: Codec
    router: Router
    unit_header: bytes
    timeout_s: float
    sketch: Sketch
    cache: ModelCache | None = None
    lanes: dict[Decision, Lane] = field(default_factory=dict)


class Serving:
    """Holds the applied table and creates lanes from it."""

    def __init__(
        self,
        triton: Triton,
        telemetry: Telemetry,
        loop: asyncio.AbstractEventLoop,
        in_flight_max: int,
        wall_clock: Callable[[], float] = time.time,
        shadows: Shadows | None = None,
        instances: int = 1,
    ) -> None:
        # Sends the batches.
        self.triton = triton
        # Creates the counters.
        self._telemetry = telemetry
        # Runs the batchers' timers.
        self._loop = loop
        # Distinguishes the ids of this process's answers from all others.
        self._process = token_hex(4)
        # Maximum batches in flight of one version.
        self._in_flight_max = in_flight_max
        # Batches of one version that an endpoint computes in parallel.
        self._instances = instances
        # Unix seconds, for the reports of trips.
        self._wall_clock = wall_clock
        # Copies requests to shadows; None disables shadows.
        self.shadows = shadows
        # Admits requests; replaced if several processes share the limits.
        self.admission = Admission()
        # Caches answers; None disables the cache.
        self.cache: Cache | None = None
        # The applied table; None before the first.
        self.table: RoutingTable | None = None
        # Models that got requests since the table was applied.
        self._models: dict[str, LiveModel] = {}
        # Models that an operator pinned to stable.
        self.pinned: frozenset[str] = frozenset()
        # Called with the (model, version) pairs that a new table no longer has.
        self.on_removed: Callable[[list[tuple[str, str]]], None] = _ignore
        # Versions that got requests, across tables.
        self._versions: dict[tuple[str, str], VersionRuntime] = {}
        # The same versions for a rollout's baseline: with a queue of its own.
        self._baselines: dict[tuple[str, str], VersionRuntime] = {}
        # Counters of this process, for versions of the table.
        self._stats: dict[tuple[str, str], VersionStats] = {}
        # The breakers' trips since this boot, the latest per (model, version, generation).
        self._trips: dict[tuple[str, str, int], BreakerTrip] = {}

    @property
    def generation(self) -> int:
        """The applied generation, 0 before the first table."""
        return self.table.generation if self.table is not None else 0

    @property
    def trips(self) -> tuple[BreakerTrip, ...]:
        return tuple(self._trips.values())

    def apply(
        self,
        table: RoutingTable,
        changed: Iterable[str] | None = None,
        removed: list[tuple[str, str]] | None = None,
    ) -> dict[str, LiveModel]:
        """Serve from `table` from the next request on; return the old table's models.

        `changed` names at least the models that differ from the applied table, and `removed` the
        versions that `table` no longer serves; None for either derives it here.
        """
        if removed is None:
            before_names = self.table.models if self.table is not None else ()
            names = before_names if changed is None else changed
            removed = [pair for name in names for pair in removed_versions(name, self.table, table)]
        self.table = table
        self.admission.apply(table)
        before, self._models = self._models, {}
        for key in removed:
            self._versions.pop(key, None)
            self._baselines.pop(key, None)
            self._stats.pop(key, None)
        self.on_removed(removed)
        if self.cache is not None:
            self.cache.applied(removed)
        used = {address for cluster in table.clusters.values() for address in cluster.endpoints}
        self.triton.keep_only(used)
        if self.shadows is not None:
            self.shadows.apply(table, used, changed)
        return before

    def pin(self, names: frozenset[str]) -> None:
        """Disable the splits of these models, `*` for all, and enable all others."""
        changed = names ^ self.pinned
        self.pinned = names
        if PIN_ALL in changed:
            self._models = {}
        for name in changed:
            self._models.pop(name, None)

    def is_pinned(self, name: str) -> bool:
        return name in self.pinned or PIN_ALL in self.pinned

    def model(self, name: str) -> LiveModel:
        """Return the model `name`. Raises Refusal (404, or 503 before the first table)."""
        model = self._models.get(name)
        return model if model is not None else self._make_model(name)

    def lane(self, model: LiveModel, decision: Decision) -> Lane:
        """Return the lane of `decision`."""
        lane = model.lanes.get(decision)
        return lane if lane is not None else self._make_lane(model, decision)

    def stats(self) -> Iterator[tuple[str, str, VersionStats, VersionRuntime | None]]:
        """Yield the counters of each version that got requests."""
        for (name, version), stats in self._stats.items():
            yield name, version, stats, self._versions.get((name, version))

    def _make_model(self, name: str) -> LiveModel:
        table = self.table
        if table is None:
            raise unavailable("no_routing_table", "no routing table was received yet", 2)
        route = table.models.get(name)
        if route is None:
            raise Refusal(404, "model_not_found", f"unknown model {name!r}")
        rows_max = route.batching.max_batch_size if route.batched else 1
        codec = Codec(route.signature, route.unit_key, batched=route.batched, rows_max=rows_max)
        model = LiveModel(
            name=name,
            route=route,
            codec=codec,
            router=Router(name, route, table.generation, pinned=self.is_pinned(name)),
            unit_header=route.unit_key.header.lower().encode(),
            timeout_s=route.timeout_ms / 1000,
            sketch=self._telemetry.sketches.of(name),
            cache=self.cache.model(name, route) if self.cache is not None else None,
        )
        self._models[name] = model
        return model

    def _make_lane(self, model: LiveModel, decision: Decision) -> Lane:
        stable = model.router.stable
        # An explicit request is for this version only.
        fallback = None
        if (
            decision.split
            and decision is not stable
            and stable is not None
            and stable.version != decision.version
        ):
            fallback = self.lane(model, stable)
        split = model.route.split
        interval_s = split.interval_s if isinstance(split, CanarySplit) else DEFAULT_INTERVAL_S
        key = (
            model.name,
            decision.version,
            decision.variant,
            decision.generation,
            decision.split,
        )
        provenance = _provenance(decision, "bypass")
        is_baseline = isinstance(split, CanarySplit) and decision.variant == BASELINE
        runtime = (self._baseline if is_baseline else self._version)(model, decision.version)
        id_head = request_id_head(model.name, decision.version, self._process)
        lane = Lane(
            decision=decision,
            runtime=runtime,
            counter=self._telemetry.counter(key, interval_s, runtime.stats.ends),
            head=b'{"model_name":%b,"model_version":%b,'
            % (orjson.dumps(model.name), orjson.dumps(decision.version)),
            provenance=provenance,
            headers=JSON + provenance,
            binary_headers=_BINARY + provenance,
            fallback=fallback,
            mirror=self._mirror(model, decision),
            id_head=id_head,
        )
        if model.cache is not None:
            scope = model.cache.scope(decision.version, decision.split if is_baseline else "")
            states = (_with_state(lane, state) for state in ("miss", "l1", "l2"))
            lane.cached = CachedLane(model.cache, scope, *states)
        model.lanes[decision] = lane
        return lane

    def _mirror(self, model: LiveModel, decision: Decision) -> Mirror | None:
        """Return the mirror of a lane of stable's; explicit requests are not copied."""
        route = model.route
        if self.shadows is None or self.table is None or route.shadow is None:
            return None
        if decision.version != route.stable or decision.variant == EXPLICIT:
            return None
        live = self._version(model, decision.version).batcher
        return self.shadows.mirror(model.name, route, self.table, live, self._process)

    def _version(self, model: LiveModel, version: str) -> VersionRuntime:
        assert self.table is not None
        route = model.route
        versioned = route.versions[version]
        cluster = self.table.clusters[versioned.cluster]
        origin = (
            versioned, cluster, route.signature, route.batched, route.batching, route.breaker,
        )  # fmt: skip
        key = (model.name, version)
        runtime = self._versions.get(key)
        if runtime is not None and runtime.origin == origin:
            return runtime
        stats = self._stats.setdefault(key, VersionStats())
        on_trip = self._on_trip(model.name, version, stats)
        replicas = Replicas(cluster.endpoints, route.breaker, on_trip, cluster.hedge_after_ms)
        batcher = self._batcher(route, versioned, replicas, stats)
        breaker = Breaker(route.breaker, on_trip)
        runtime = VersionRuntime(origin, batcher, breaker, stats, replicas, [batcher])
        self._versions[key] = runtime
        return runtime

    def _baseline(self, model: LiveModel, version: str) -> VersionRuntime:
        """Return a version with a queue of its own; everything else is shared.

        A canary at a small share has small batches that do not wait to fill, and what it is
        compared with must have the same. The breaker is shared, because it is about the version.
        """
        shared = self._version(model, version)
        key = (model.name, version)
        runtime = self._baselines.get(key)
        if runtime is None or runtime.origin is not shared.origin:
            batcher = self._batcher(
                model.route, model.route.versions[version], shared.replicas, shared.stats
            )
            shared.batchers.append(batcher)
            runtime = self._baselines[key] = replace(shared, batcher=batcher)
        return runtime

    def _batcher(
        self, route: ModelRoute, versioned: VersionRoute, replicas: Replicas, stats: VersionStats
    ) -> Batcher:
        return Batcher(
            route,
            versioned,
            replicas,
            self.triton,
            self._loop,
            stats.batch_size.observe,
            self._in_flight_max,
            self._instances,
        )

    def _on_trip(self, name: str, version: str, stats: VersionStats) -> Callable[[str], None]:
        def tripped(reason: str) -> None:
            stats.trips += 1
            key = (name, version, self.generation)
            before = self._trips.pop(key, None)
            if len(self._trips) >= TRIPS_MAX:
                del self._trips[next(iter(self._trips))]
            self._trips[key] = BreakerTrip(
                model=name,
                version=version,
                generation=self.generation,
                count=before.count + 1 if before is not None else 1,
                last_at_ms=int(self._wall_clock() * 1000),
                reason=reason[:REASON_LENGTH_MAX],
            )

        return tripped


def _ignore(removed: list[tuple[str, str]]) -> None:
    """Do nothing: no listener is set."""


def _provenance(decision: Decision, cache_state: str) -> bytes:
    return (
        b"x-interlock-version: %b\r\nx-interlock-variant: %b\r\n"
        b"x-interlock-generation: %d\r\nx-interlock-cache: %b\r\n"
        % (
            _safe(decision.version),
            _safe(decision.variant),
            decision.generation,
            cache_state.encode(),
        )
    )


def _with_state(lane: Lane, cache_state: str) -> Lane:
    """Return the lane of requests with this cache state."""
    provenance = _provenance(lane.decision, cache_state)
    return replace(
        lane,
        cache_state=cache_state,
        provenance=provenance,
        headers=JSON + provenance,
        binary_headers=_BINARY + provenance,
    )


def _safe(value: str) -> bytes:
    """Return a header value without line breaks."""
    return value.encode("ascii", "replace").translate(None, b"\r\n")
