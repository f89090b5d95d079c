"""The cache of one process, and its parts for each model.

A request looks here before it calls its version: in the first tier, then for an identical request
in flight, then in the second tier. Versions never share an entry. Answers of a fallback, refusals,
and answers that JSON cannot represent are never cached.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from contract.routing import Cache as Settings
from contract.routing import ModelRoute, VersionRoute
from dataplane.batch_reply import Output
from dataplane.cache.digest import ContentDigest, key_of, scope_digest
from dataplane.cache.entry import Corrupt, Entry, Scope, decode_value, encode_value, entry_of
from dataplane.cache.in_flight import CachedLane, Flights, Ticket, Waiter
from dataplane.cache.local import LocalCache
from dataplane.cache.memo import Memo
from dataplane.cache.shared import SharedCache
from dataplane.datatypes import NotJson

if TYPE_CHECKING:
    from dataplane.caller import Caller
    from dataplane.codec import Codec, InferRequest
    from dataplane.exchange import Exchange

log = logging.getLogger("interlock.dataplane")

# Larger requests bypass the cache: the event loop waits for the digest, 1 ms for this many bytes.
DIGEST_BYTES_MAX = 1024 * 1024
# The memo may use this fraction of the bytes of answers.
MEMO_PART = 2


class Cache:
    """Both tiers, the flights and the memo; one per process."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        shared: SharedCache | None,
        entries_max: int,
        bytes_max: int,
    ) -> None:
        # Runs the deadlines of waiting requests.
        self.loop = loop
        # The first tier.
        self.local = LocalCache(loop, entries_max, bytes_max)
        # The second tier; None disables it.
        self.shared = shared
        # The keys in flight.
        self.flights = Flights()
        # Parsed requests.
        self.memo = Memo(loop, entries_max, bytes_max // MEMO_PART)
        # The scopes of keys, by model, version and whether it is a baseline.
        self._scopes: dict[tuple[str, str, bool], Scope] = {}

    def model(self, name: str, route: ModelRoute) -> ModelCache | None:
        """Return the cache of a model, None if it is off."""
        return ModelCache(self, name, route, route.cache) if route.cache is not None else None

    def scope(self, name: str, version: str, route: ModelRoute, baseline: str = "") -> Scope:
        """Return the scope of a version, or of the `baseline` of a rollout on it.

        The baseline starts as cold as the canary and grows with as many units: entries of the other
        traffic must not answer for it.
        """
        origin = (baseline, _origin(route, route.versions[version]))
        key = (name, version, bool(baseline))
        scope = self._scopes.get(key)
        if scope is None or scope.origin != origin:
            if scope is not None:
                scope.alive = False
                self.local.drop_dead()
            digest = scope_digest(name, version, route, route.versions[version], baseline)
            scope = self._scopes[key] = Scope(digest, origin)
        return scope

    def applied(self, removed: list[tuple[str, str]]) -> None:
        """Drop what belongs to the old table; the new one no longer has the versions `removed`."""
        self.memo.clear()
        keys = [(*pair, is_baseline) for pair in removed for is_baseline in (False, True)]
        dead = [self._scopes.pop(key) for key in keys if key in self._scopes]
        for scope in dead:
            scope.alive = False
        if dead:
            self.local.drop_dead()

    async def close(self) -> None:
        if self.shared is not None:
            await self.shared.close()


def _origin(route: ModelRoute, versioned: VersionRoute) -> object:
    return (
        versioned.cluster,
        versioned.triton_model,
        versioned.triton_version,
        versioned.created_at_ms,
        route.signature,
        route.batched,
    )


class ModelCache:
    """The cache of one model under one generation."""

    __slots__ = ("_batched", "_cache", "_digest", "_name", "_route", "_shared", "_ttl_s")

    def __init__(self, cache: Cache, name: str, route: ModelRoute, settings: Settings) -> None:
        # The cache of the process.
        self._cache = cache
        # The model in keys.
        self._name = name
        # The model's route, for scopes and signatures.
        self._route = route
        # The time to live of answers.
        self._ttl_s = settings.ttl_s
        # The second tier, if the model uses it.
        self._shared = cache.shared if settings.shared else None
        # Whether the first dimension is the rows.
        self._batched = route.batched
        # Computes the content part of keys.
        self._digest = ContentDigest(route.signature)

    def scope(self, version: str, baseline: str = "") -> Scope:
        """Return the scope of a lane of `version`; `baseline` is the id of its rollout."""
        return self._cache.scope(self._name, version, self._route, baseline)

    # --- parsed requests -----------------------------------------------------------------------

    def read(
        self,
        read: Callable[[Codec, Exchange], InferRequest],
        codec: Codec,
        exchange: Exchange,
    ) -> InferRequest:
        """Return the request that `read` parses from `exchange`, or that it parsed before."""
        # The body is decompressed here, so its compression does not matter.
        length = exchange.headers.get(b"inference-header-content-length")
        origin = (self, exchange.body, length)
        request = self._cache.memo.get(origin)
        if request is None:
            request = read(codec, exchange)
            request.origin = origin
        return request

    # --- lookup --------------------------------------------------------------------------------

    def take_over(
        self, waiter: Waiter, lane: CachedLane, tenant: str, caller: Caller, now: float
    ) -> bool:
        """Take over `waiter`; return False if it must call its version itself."""
        request = waiter.request
        content = request.digest
        if content is None:
            if sum(map(len, request.tensors)) > DIGEST_BYTES_MAX:
                return False
            content = request.digest = self._digest(request)
        scope = lane.scope
        known = request.known_key
        if known is not None and known[0] is scope and known[1] == tenant:
            key = known[2]
        else:
            key = key_of(scope.digest, content, tenant)
            request.known_key = (scope, tenant, key)
        control = caller.headers.get(b"cache-control")
        if control is not None:
            directives = control.lower()
            if b"no-store" in directives:
                return False
            if b"no-cache" in directives:
                waiter.ticket = Ticket(waiter, lane, key)
                return False
        entry = self._cache.local.get(key, now - self._ttl_s)
        if entry is not None:
            self._remember(request)
            waiter.on_hit(lane.local, entry)
            return True
        self._fly(Ticket(waiter, lane, key), now)
        return True

    def _remember(self, request: InferRequest) -> None:
        if request.origin is not None:
            origin, request.origin = request.origin, None
            self._cache.memo.put(origin, request)

    def _fly(self, ticket: Ticket, now: float) -> None:
        flights = self._cache.flights
        waiter = ticket.waiter
        # Only hits are remembered, and the body may be large.
        waiter.request.origin = None
        waiter.ticket = ticket
        flight = flights.get(ticket.key, now)
        if flight is not None:
            ticket.wait(flight, waiter.deadline - now, self._cache.loop)
            return
        ticket.flight = flights.begin(ticket.key, waiter.deadline)
        shared = self._shared
        if shared is None or not shared.look_up(ticket.key, _SharedLookup(self, ticket)):
            ticket.call_version()

    def on_value(self, ticket: Ticket, value: bytes | None) -> None:
        """Continue a leader with the value of the second tier, None for a miss."""
        entry = self._decode(ticket, value) if value is not None else None
        waiter = ticket.waiter
        if entry is None:
            ticket.call_version()
            return
        self._cache.local.put(ticket.key, entry)
        waiter.ticket = None
        try:
            waiter.on_hit(ticket.lane.shared, entry)
        finally:
            if ticket.flight is not None:
                ticket.flight.settle(entry, shared=True)

    def _decode(self, ticket: Ticket, value: bytes) -> Entry | None:
        now = monotonic()
        try:
            entry = decode_value(
                value,
                ticket.lane.scope,
                ticket.waiter.request.rows,
                self._route.signature,
                batched=self._batched,
                now=now,
                now_ms=int(time.time() * 1000),
            )
        except Corrupt as error:
            log.warning("cache.shared: a corrupt value of %s: %s", self._name, error)
            if self._shared is not None:
                self._shared.failures["corrupt"] += 1
            return None
        return entry if entry.stored_at >= now - self._ttl_s else None

    # --- storing -------------------------------------------------------------------------------

    def keep(self, ticket: Ticket, outputs: list[Output], start: int) -> None:
        """Cache the rows from `start` on, an answer of the version, and answer the flight."""
        now = monotonic()
        entry = None
        try:
            entry = entry_of(ticket.lane.scope, ticket.waiter.request.rows, outputs, start, now)
            self._cache.local.put(ticket.key, entry)
            if self._shared is not None and ticket.lane.scope.alive:
                value = encode_value(entry, now, int(time.time() * 1000))
                self._shared.store(ticket.key, value, self._ttl_s)
        except NotJson:
            # The next request may want JSON, and must get the error that there is none.
            pass
        except Exception:
            # The other jobs of the batch still wait for their rows.
            log.exception("an answer could not be cached")
        ticket.answered(entry)


class _SharedLookup:
    """A leader that waits for the second tier."""

    __slots__ = ("_cache", "_ticket")

    def __init__(self, cache: ModelCache, ticket: Ticket) -> None:
        # Continues with the value.
        self._cache = cache
        # The ticket of the leader.
        self._ticket = ticket

    def on_value(self, value: bytes | None) -> None:
        self._cache.on_value(self._ticket, value)
