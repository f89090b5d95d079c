"""Redis clients of the data plane: for one server, or for the primary that Sentinel names.

A server that became a replica refuses writes on connections from before: such a connection is
closed, and the next one goes to the current primary.
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
DEMOTED = "the server is a replica now and refuses writes"


class LeavesReplica:
    """A connection that is closed when the server refuses writes."""

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
    """A client that also closes the clients of its sentinels."""

    sentinels: Sequence[redis.Redis[bytes]] = ()

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)  # type: ignore[misc]
        for each in self.sentinels:
            await each.aclose()  # type: ignore[attr-defined]


CONNECTIONS = {"redis": PlainConnection, "rediss": TlsConnection, "unix": UnixConnection}


def connect(
    url: str, *, timeout_s: float, connections_max: int | None = None, tries_again: bool = True
) -> redis.Redis[bytes]:
    """Return a client; without `tries_again` no call takes longer than `timeout_s`."""
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
    # The client owns the pool, and closes it.
    client: redis.Redis[bytes] = redis.Redis.from_pool(pool)  # type: ignore[attr-defined]
    return client


def _of_sentinel(address: RedisAddress, options: dict[str, Any]) -> redis.Redis[bytes]:
    tls: dict[str, Any] = {"ssl": True, **address.tls_files} if address.is_tls else {}
    options_of_sentinels = {**tls, **address.sentinel_credentials, **options}
    sentinel = Sentinel(list(address.sentinels), sentinel_kwargs=options_of_sentinels)
    server: dict[str, Any] = {**tls, **address.credentials, **options}
    client: Any = sentinel.master_for(address.service, redis_class=ByUrl, db=address.db, **server)
    client.sentinels = tuple(sentinel.sentinels)
    own: redis.Redis[bytes] = client
    return own


async def cluster_fault(url: str) -> str:
    """Return why this Redis cannot be used, or ""; a server that does not respond may be usable."""
    client = connect(url, timeout_s=CHECK_TIMEOUT_S, tries_again=False)
    try:
        info: Any = await client.info("cluster")
    except redis.RedisError:
        return ""
    finally:
        await client.aclose()  # type: ignore[attr-defined]
    return NO_CLUSTER if info.get("cluster_enabled") else ""
