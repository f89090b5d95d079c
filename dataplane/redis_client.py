"""The data plane's clients of Redis: of one server, or of the primary that Sentinel names.

A server that was made a replica refuses writes on the connections that were open then: such a
connection is closed, and the next one goes to whom the address, or Sentinel, names by then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis.asyncio as redis
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError

from contract.redis_url import NO_CLUSTER, RedisAddress, parse_redis_url

CHECK_TIMEOUT_S = 2.0
DEMOTED = "the server takes no writes: it is a replica now"


class LeavesReplica:
    """A connection that ends when the server says that it takes no writes."""

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().read_response(*args, **kwargs)  # type: ignore[misc]
        except ReadOnlyError:
            await self.disconnect()  # type: ignore[attr-defined]
            raise redis.ConnectionError(DEMOTED) from None


class PlainConnection(LeavesReplica, redis.Connection):
    pass


class TlsConnection(LeavesReplica, SSLConnection):
    pass


class UnixConnection(LeavesReplica, UnixDomainSocketConnection):
    pass


class ByUrl(redis.Redis):  # type: ignore[type-arg]
    """A client that closes, with itself, those of the sentinels that it asked."""

    sentinels: Sequence[redis.Redis[bytes]] = ()

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)  # type: ignore[misc]
        for each in self.sentinels:
            await each.aclose()  # type: ignore[attr-defined]


CONNECTIONS = {"redis": PlainConnection, "rediss": TlsConnection, "unix": UnixConnection}


def connect(
    url: str, *, timeout_s: float, connections_max: int | None = None, tries_again: bool = True
) -> redis.Redis[bytes]:
    """Return a client; one that does not try again never waits for longer than `timeout_s`."""
    address = parse_redis_url(url)
    options: dict[str, Any] = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
    if connections_max is not None:
        options["max_connections"] = connections_max
    if not tries_again:
        options["retry"] = Retry(NoBackoff(), 0)
    if address.service:
        return _of_sentinel(address, options)
    scheme = address.url.partition(":")[0]
    pool: redis.ConnectionPool[Any] = redis.ConnectionPool.from_url(
        url, connection_class=CONNECTIONS[scheme], **options
    )
    # It is the client's own, and closed with it.
    client: redis.Redis[bytes] = redis.Redis.from_pool(pool)  # type: ignore[attr-defined]
    return client


def _of_sentinel(address: RedisAddress, options: dict[str, Any]) -> redis.Redis[bytes]:
    tls: dict[str, Any] = {"ssl": True, **address.tls_files} if address.is_tls else {}
    asking = {**tls, **address.sentinel_credentials, **options}
    sentinel = Sentinel(list(address.sentinels), sentinel_kwargs=asking)
    server: dict[str, Any] = {**tls, **address.credentials, **options}
    client: Any = sentinel.master_for(address.service, redis_class=ByUrl, db=address.db, **server)
    client.sentinels = tuple(sentinel.sentinels)
    own: redis.Redis[bytes] = client
    return own


async def cluster_fault(url: str) -> str:
    """Return why this Redis cannot be used, or nothing; who cannot be asked may be none."""
    client = connect(url, timeout_s=CHECK_TIMEOUT_S, tries_again=False)
    try:
        told: Any = await client.info("cluster")
    except redis.RedisError:
        return ""
    finally:
        await client.aclose()  # type: ignore[attr-defined]
    return NO_CLUSTER if told.get("cluster_enabled") else ""
