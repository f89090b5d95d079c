"""Celery's Redis transports: Kombu's, with connections that reconnect after a failover.

A server that becomes a replica responds with "READONLY", and with "UNBLOCKED" to a client that
waits for a task. Kombu treats both as programming errors, which end the worker; as connection
errors they make it reconnect.
"""

from __future__ import annotations

from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis

from apps.lib.redis_client import (
    ClusterRefused,
    Connection,
    SentinelConnection,
    SentinelSSLConnection,
    SSLConnection,
    refuse_cluster,
)


class Channel(kombu_redis.Channel):
    connection_class = Connection
    connection_class_ssl = SSLConnection


class SentinelChannel(kombu_redis.SentinelChannel):
    connection_class = SentinelConnection
    connection_class_ssl = SentinelSSLConnection


class Transport(kombu_redis.Transport):
    Channel = Channel


class SentinelTransport(kombu_redis.SentinelTransport):
    Channel = SentinelChannel


def use() -> None:
    """Register these transports for Kombu's Redis and Sentinel URLs."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = "controlplane.broker:Transport"
    TRANSPORT_ALIASES["sentinel"] = "controlplane.broker:SentinelTransport"


def refuse_cluster_or_exit() -> None:
    """End the process with an error message if Redis is a cluster."""
    try:
        refuse_cluster()
    except ClusterRefused as error:
        raise SystemExit(f"interlock: {error}") from None
