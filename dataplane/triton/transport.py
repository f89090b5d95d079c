"""Sends calls to the endpoints of clusters: a pool per endpoint, a group per cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from time import monotonic
from weakref import WeakValueDictionary

from dataplane.config import Transport as Settings
from dataplane.triton.call_results import OnDone, Reply, TritonError
from dataplane.triton.endpoint import Endpoint
from dataplane.triton.group import Group
from dataplane.triton.version_endpoints import Replicas

TICK_S = 1.0


class Triton:
    """The client of Triton servers of one process."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connections_max: int = 64,
        settings: Settings | None = None,
    ) -> None:
        # Opens connections and runs deadlines.
        self._loop = loop
        # Maximum connections to one endpoint.
        self._connections_max = connections_max
        # Budgets, ejection, warm-up.
        self._settings = settings or Settings()
        # Pools by address; `keep_only` closes those that no cluster has any more.
        self._endpoints: dict[str, Endpoint] = {}
        # Groups by the addresses of their endpoints, while they are referenced.
        self._groups: WeakValueDictionary[tuple[str, ...], Group] = WeakValueDictionary()
        # For callers that pass addresses only.
        self._plain: dict[tuple[str, ...], Replicas] = {}
        # Updates counts and budgets every second, while there are calls.
        self._ticker: asyncio.TimerHandle | None = None

    def post(
        self,
        target: Replicas | tuple[str, ...],
        request: bytes,
        timeout_s: float,
        on_done: OnDone,
    ) -> None:
        """Send `request` to an endpoint of `target`; `on_done` gets the reply or a TritonError.

        Raises ValueError for an invalid address.
        """
        replicas = target if isinstance(target, Replicas) else self._replicas(target)
        group = replicas.group
        if group is None or group.closed:
            group = replicas.group = self._group(replicas.addresses)
        if self._ticker is None:
            self._ticker = self._loop.call_later(TICK_S, self._tick)
        group.post(replicas, request, timeout_s, on_done)

    async def get(self, address: str, path: str, timeout_s: float) -> Reply:
        """Fetch `path` from one endpoint. Raises TritonError, ValueError."""
        request = b"GET %b HTTP/1.1\r\nhost: %b\r\n\r\n" % (path.encode(), address.encode())
        return await self.send_to(address, request, timeout_s)

    async def send_to(self, address: str, request: bytes, timeout_s: float) -> Reply:
        """Send `request` to one endpoint, whatever its health. Raises TritonError, ValueError."""
        done: asyncio.Future[Reply | TritonError] = self._loop.create_future()
        group = Group((self._endpoint(address),), self._loop, self._settings)
        group.post(Replicas((address,)), request, timeout_s, _resolver(done))
        result = await done
        if isinstance(result, TritonError):
            raise result
        return result

    def warm(self, address: str) -> None:
        """Open connections to an endpoint that will be used. Raises ValueError."""
        self._endpoint(address).warm(self._settings.warm_connections)

    def endpoints(self) -> Iterable[Endpoint]:
        """Return the endpoints that got calls."""
        return self._endpoints.values()

    def keep_only(self, addresses: set[str]) -> None:
        """Close the pools of endpoints that no cluster has any more."""
        removed = self._endpoints.keys() - addresses
        self._plain = {}
        if not removed:
            return
        for key, group in list(self._groups.items()):
            group.closed = not removed.isdisjoint(key)
            if group.closed:
                del self._groups[key]
        for address in removed:
            self._endpoints.pop(address).close()

    def close(self) -> None:
        """Close every idle connection, and the others when their calls have ended."""
        self.keep_only(set())
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None

    def _replicas(self, addresses: tuple[str, ...]) -> Replicas:
        replicas = self._plain.get(addresses)
        if replicas is None:
            replicas = self._plain[addresses] = Replicas(addresses)
        return replicas

    def _group(self, addresses: tuple[str, ...]) -> Group:
        group = self._groups.get(addresses)
        if group is None:
            endpoints = tuple(self._endpoint(address) for address in addresses)
            group = self._groups[addresses] = Group(endpoints, self._loop, self._settings)
        return group

    def _endpoint(self, address: str) -> Endpoint:
        endpoint = self._endpoints.get(address)
        if endpoint is None:
            endpoint = Endpoint(address, self._loop, self._connections_max, self._settings)
            self._endpoints[address] = endpoint
        return endpoint

    def _tick(self) -> None:
        """Let a second pass; the timer stops when everything is at rest."""
        now = monotonic()
        at_rest = True
        for group in list(self._groups.values()):
            group.budget.roll()
            group.judge(now)
            at_rest = at_rest and group.budget.at_rest
        for endpoint in self._endpoints.values():
            endpoint.health.decay()
            endpoint.tick(now)
            at_rest = at_rest and not endpoint.open
        self._ticker = None if at_rest else self._loop.call_later(TICK_S, self._tick)


def _resolver(done: asyncio.Future[Reply | TritonError]) -> OnDone:
    def resolve(result: Reply | TritonError) -> None:
        if not done.done():
            done.set_result(result)

    return resolve
