"""The control plane's Redis clients: for one server, or for the primary that Sentinel reports.

A server that was demoted to a replica refuses writes on connections that are still open. Such a
connection is closed, and the next one goes to the current primary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis
from django.conf import settings
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError, ResponseError
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelManagedConnection, SentinelManagedSSLConnection

from contract.redis_url import NO_CLUSTER, RedisAddress, parse_redis_url

CHECK_TIMEOUT_S = 2.0
# The error of a blocked read at the moment of a demotion.
UNBLOCKED = "UNBLOCKED"
DEMOTED = "the server is a replica now and refuses writes"


class ClusterRefused(RuntimeError):
    """Redis is a cluster, which is not supported; the message says why."""


class LeavesReplica:
    """A connection that closes when the server refuses writes as a replica."""

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().read_response(*args, **kwargs)  # type: ignore[misc]
        except ResponseError as error:
            if not isinstance(error, ReadOnlyError) and not str(error).startswith(UNBLOCKED):
                raise
            self.disconnect()  # type: ignore[attr-defined]
            raise redis.ConnectionError(DEMOTED) from None


class Connection(LeavesReplica, redis.Connection):
    pass


class SSLConnection(LeavesReplica, redis.SSLConnection):
    pass


class UnixConnection(LeavesReplica, redis.UnixDomainSocketConnection):
    pass


class SentinelConnection(LeavesReplica, SentinelManagedConnection):
    pass


class SentinelSSLConnection(LeavesReplica, SentinelManagedSSLConnection):
    pass


class ByUrl(redis.Redis):  # type: ignore[type-arg]
    """A client that also closes the clients of its sentinels."""

    sentinels: Sequence[redis.Redis[bytes]] = ()

    def close(self) -> None:
        super().close()
        for each in self.sentinels:
            each.close()


CONNECTIONS = {"redis": Connection, "rediss": SSLConnection, "unix": UnixConnection}


def connect(*, timeout_s: float, connect_timeout_s: float | None = None) -> redis.Redis[bytes]:
    """Return a client that does not retry: callers retry in their own loop, or do without."""
    address = parse_redis_url(settings.REDIS_URL)
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": connect_timeout_s or timeout_s,
        "retry": Retry(NoBackoff(), 0),
    }
    if address.service:
        return _of_sentinel(address, options)
    scheme = address.url.partition(":")[0]
    pool = redis.ConnectionPool.from_url(
        address.url, connection_class=CONNECTIONS[scheme], **options
    )
    # The client owns the pool and closes it.
    client: redis.Redis[bytes] = redis.Redis.from_pool(pool)  # type: ignore[attr-defined]
    return client


def _of_sentinel(address: RedisAddress, options: dict[str, Any]) -> redis.Redis[bytes]:
    tls: dict[str, Any] = {"ssl": True, **address.tls_files} if address.is_tls else {}
    sentinel_options = {**tls, **address.sentinel_credentials, **options}
    sentinel = Sentinel(list(address.sentinels), sentinel_kwargs=sentinel_options)
    kind = SentinelSSLConnection if address.is_tls else SentinelConnection
    server: dict[str, Any] = {**tls, **address.credentials, **options, "connection_class": kind}
    client: Any = sentinel.master_for(address.service, redis_class=ByUrl, db=address.db, **server)
    client.sentinels = tuple(sentinel.sentinels)
    own: redis.Redis[bytes] = client
    return own


def refuse_cluster() -> None:
    """Raise ClusterRefused if Redis is a cluster. An unreachable Redis is not refused."""
    try:
        with connect(timeout_s=CHECK_TIMEOUT_S) as client:
            info: Any = client.info("cluster")
    except redis.RedisError:
        return
    if info.get("cluster_enabled"):
        raise ClusterRefused(NO_CLUSTER)
