"""The control plane's clients of Redis: of one server, or of the primary that Sentinel names.

A server that was made a replica refuses writes on the connections that were open then: such a
connection is closed, and the next one goes to whom the address, or Sentinel, names by then.
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
# What whoever waits for an entry is told at that moment.
UNBLOCKED = "UNBLOCKED"
DEMOTED = "the server is a replica now and refuses writes"


class ClusterRefused(RuntimeError):
    """Redis is a cluster; the message says why that cannot be."""


class LeavesReplica:
    """A connection that ends when the server says that it takes no writes."""

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
    """A client that closes, with itself, those of the sentinels that it asked."""

    sentinels: Sequence[redis.Redis[bytes]] = ()

    def close(self) -> None:
        super().close()
        for each in self.sentinels:
            each.close()


CONNECTIONS = {"redis": Connection, "rediss": SSLConnection, "unix": UnixConnection}


def connect(*, timeout_s: float, connect_timeout_s: float | None = None) -> redis.Redis[bytes]:
    """Return a client that tries once: whoever uses it has a loop of its own, or does without."""
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
    # It is the client's own, and closed with it.
    client: redis.Redis[bytes] = redis.Redis.from_pool(pool)  # type: ignore[attr-defined]
    return client


def _of_sentinel(address: RedisAddress, options: dict[str, Any]) -> redis.Redis[bytes]:
    tls: dict[str, Any] = {"ssl": True, **address.tls_files} if address.is_tls else {}
    asking = {**tls, **address.sentinel_credentials, **options}
    sentinel = Sentinel(list(address.sentinels), sentinel_kwargs=asking)
    kind = SentinelSSLConnection if address.is_tls else SentinelConnection
    server: dict[str, Any] = {**tls, **address.credentials, **options, "connection_class": kind}
    client: Any = sentinel.master_for(address.service, redis_class=ByUrl, db=address.db, **server)
    client.sentinels = tuple(sentinel.sentinels)
    own: redis.Redis[bytes] = client
    return own


def refuse_cluster() -> None:
    """Raise ClusterRefused where Redis answers and is a cluster; who is silent may be none."""
    try:
        with connect(timeout_s=CHECK_TIMEOUT_S) as client:
            told: Any = client.info("cluster")
    except redis.RedisError:
        return
    if told.get("cluster_enabled"):
        raise ClusterRefused(NO_CLUSTER)
