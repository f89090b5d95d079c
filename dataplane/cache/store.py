"""The cache of one process, and what one model sees of it.

A request asks here before it asks its version: the first tier, then whoever asks the same already,
then the second tier. Versions never share an entry. Answers that a fallback gave, refusals and
what JSON cannot carry are never kept.
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
from dataplane.cache.in_flight import Asker, CachedLane, Flights, Ticket
from dataplane.cache.local import LocalCache
from dataplane.cache.memo import Memo
from dataplane.cache.shared import SharedCache
from dataplane.datatypes import NotJson

if TYPE_CHECKING:
    from dataplane.caller import Caller
    from dataplane.codec import Codec, InferRequest
    from dataplane.exchange import Exchange

log = logging.getLogger("interlock.dataplane")

# Larger requests go by: the event loop waits for a digest, a millisecond for so many bytes.
DIGEST_BYTES_MAX = 1024 * 1024
# The memo may hold this part of the bytes that answers may.
MEMO_PART = 2


class Cache:
    """Both tiers, the flights and the memo; one for the whole process."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        shared: SharedCache | None,
        entries_max: int,
        bytes_max: int,
    ) -> None:
        # Runs the deadlines of those who wait.
        self.loop = loop
        # The first tier.
        self.local = LocalCache(loop, entries_max, bytes_max)
        # The second tier; without it models do without.
        self.shared = shared
        # Who asks what at present.
        self.flights = Flights()
        # Requests that were read before.
        self.memo = Memo(loop, entries_max, bytes_max // MEMO_PART)
        # The versions that keys were made for, by model, version and whether for a baseline.
        self._scopes: dict[tuple[str, str, bool], Scope] = {}

    def model(self, name: str, route: ModelRoute) -> ModelCache | None:
        """Return what the model sees of the cache, None where it is off."""
        return ModelCache(self, name, route, route.cache) if route.cache is not None else None

    def scope(self, name: str, version: str, route: ModelRoute, baseline: str = "") -> Scope:
        """Return the scope of a version, or of the `baseline` of a rollout on it.

        That one begins as cold as the canary and grows with as many units: what the fleet has in
        its cache must not answer for it.
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

    def applied(self, gone: list[tuple[str, str]]) -> None:
        """Begin with a new table, which has the versions `gone` no longer."""
        self.memo.clear()
        keys = [(*pair, is_baseline) for pair in gone for is_baseline in (False, True)]
        dead = [self._scopes.pop(key) for key in keys if key in self._scopes]
        for scope in dead:
            scope.alive = False
        if dead:
            self.local.drop_dead()

    async def close(self) -> None:
        """Close the connections."""
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
    """The cache as one model under one generation uses it."""

    __slots__ = ("_batched", "_cache", "_digest", "_name", "_route", "_shared", "_ttl_s")

    def __init__(self, cache: Cache, name: str, route: ModelRoute, settings: Settings) -> None:
        # Both tiers.
        self._cache = cache
        # Whose it is, in keys.
        self._name = name
        # Makes scopes, and outputs from entries.
        self._route = route
        # An answer may be given again for so long.
        self._ttl_s = settings.ttl_s
        # The second tier, where the model uses it.
        self._shared = cache.shared if settings.shared else None
        # The first dimension counts rows.
        self._batched = route.batched
        # Makes the part of keys that the request decides.
        self._digest = ContentDigest(route.signature)

    def scope(self, version: str, baseline: str = "") -> Scope:
        """Return what a lane of `version` needs; `baseline` names the rollout whose it is."""
        return self._cache.scope(self._name, version, self._route, baseline)

    # --- requests that were read before --------------------------------------------------------

    def read(
        self,
        read: Callable[[Codec, Exchange], InferRequest],
        codec: Codec,
        exchange: Exchange,
    ) -> InferRequest:
        """Return what `read` makes of an infer request, or made of the same bytes before."""
        # The body is unpacked by now, so how it was packed does not matter.
        length = exchange.headers.get(b"inference-header-content-length")
        origin = (self, exchange.body, length)
        request = self._cache.memo.get(origin)
        if request is None:
            request = read(codec, exchange)
            request.origin = origin
        return request

    # --- the way in ----------------------------------------------------------------------------

    def takes(
        self, asker: Asker, lane: CachedLane, tenant: str, caller: Caller, now: float
    ) -> bool:
        """Take `asker` over; False when it must go on by itself."""
        request = asker.request
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
                asker.ticket = Ticket(asker, lane, key)
                return False
        entry = self._cache.local.get(key, now - self._ttl_s)
        if entry is not None:
            self._remember(request)
            asker.found(lane.local, entry)
            return True
        self._fly(Ticket(asker, lane, key), now)
        return True

    def _remember(self, request: InferRequest) -> None:
        if request.origin is not None:
            origin, request.origin = request.origin, None
            self._cache.memo.put(origin, request)

    def _fly(self, ticket: Ticket, now: float) -> None:
        flights = self._cache.flights
        asker = ticket.asker
        # Only hits are remembered, and the body may be large.
        asker.request.origin = None
        asker.ticket = ticket
        flight = flights.get(ticket.key, now)
        if flight is not None:
            ticket.wait(flight, asker.deadline - now, self._cache.loop)
            return
        ticket.flight = flights.begin(ticket.key, asker.deadline)
        shared = self._shared
        if shared is None or not shared.ask(ticket.key, _SharedLookup(self, ticket)):
            ticket.go_on()

    def brought(self, ticket: Ticket, value: bytes | None) -> None:
        """Go on with what the second tier had for a leader, None where it had nothing."""
        entry = self._decode(ticket, value) if value is not None else None
        asker = ticket.asker
        if entry is None:
            ticket.go_on()
            return
        self._cache.local.put(ticket.key, entry)
        asker.ticket = None
        try:
            asker.found(ticket.lane.shared, entry)
        finally:
            if ticket.flight is not None:
                ticket.flight.settle(entry, shared=True)

    def _decode(self, ticket: Ticket, value: bytes) -> Entry | None:
        now = monotonic()
        try:
            entry = decode_value(
                value,
                ticket.lane.scope,
                ticket.asker.request.rows,
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

    # --- the way out ---------------------------------------------------------------------------

    def keep(self, ticket: Ticket, outputs: list[Output], start: int) -> None:
        """Keep the rows from `start` on, which the version answered, and pass them on."""
        now = monotonic()
        entry = None
        try:
            entry = entry_of(ticket.lane.scope, ticket.asker.request.rows, outputs, start, now)
            self._cache.local.put(ticket.key, entry)
            if self._shared is not None and ticket.lane.scope.alive:
                value = encode_value(entry, now, int(time.time() * 1000))
                self._shared.store(ticket.key, value, self._ttl_s)
        except NotJson:
            # The next one to ask may want JSON, and must hear that there is none.
            pass
        except Exception:
            # The neighbours in the batch still wait for their rows.
            log.exception("an answer could not be kept")
        ticket.answered(entry)


class _SharedLookup:
    """A leader that waits for the second tier."""

    __slots__ = ("_cache", "_ticket")

    def __init__(self, cache: ModelCache, ticket: Ticket) -> None:
        # Goes on with what comes.
        self._cache = cache
        # Who leads.
        self._ticket = ticket

    def brought(self, value: bytes | None) -> None:
        self._cache.brought(self._ticket, value)
