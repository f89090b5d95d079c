"""Celery's way to Redis: as Kombu has it, with connections that leave a server made a replica.

Kombu takes "READONLY", and "UNBLOCKED", which whoever waits for a task is told as the server
changes, for errors of the program, which end the worker; an error of the connection has it connect
again.
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
    """Let Kombu's URLs of Redis and of Sentinel lead here."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = "controlplane.broker:Transport"
    TRANSPORT_ALIASES["sentinel"] = "controlplane.broker:SentinelTransport"


def refuse_cluster_or_exit() -> None:
    """End the process with the reason where Redis is a cluster."""
    try:
        refuse_cluster()
    except ClusterRefused as error:
        raise SystemExit(f"interlock: {error}") from None
