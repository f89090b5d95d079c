"""Lists this installation's own servers, which outgoing calls must not reach."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings

from apps.lib.egress import EgressPolicy, OwnService
from apps.models.models import ServingCluster
from contract.redis_url import RedisAddress, parse_redis_url

SCHEME_PORTS = {
    "http": 80, "https": 443, "redis": 6379, "rediss": 6379, "postgresql": 5432, "postgres": 5432,
}  # fmt: skip


def egress_policy() -> EgressPolicy:
    """Return the current policy of outgoing calls. Reads the serving clusters."""
    urls: list[str] = []
    for endpoints in ServingCluster.objects.values_list("endpoints", flat=True):
        urls += map(str, endpoints if isinstance(endpoints, list) else [])
    configured = configured_policy()
    return replace(configured, own=(*configured.own, *_tritons(urls)))


def configured_policy() -> EgressPolicy:
    """Return the policy from the settings alone, without the database."""
    return EgressPolicy(settings.WEBHOOK_ALLOWED, tuple(_configured_services()))


def _configured_services() -> Iterator[OwnService]:
    yield from settings.OWN_SERVICES
    yield from _of_redis(parse_redis_url(settings.REDIS_URL))
    yield from _of_urls("MLflow", [settings.MLFLOW_TRACKING_URI])
    yield from _of_urls("data plane", [settings.DATAPLANE_URL])
    yield from _of_urls("Prometheus", [settings.PROMETHEUS_URL])
    yield from _of_urls("warehouse", [settings.WAREHOUSE_URL])
    for own in _of_urls("web UI", [settings.PUBLIC_URL, settings.MLFLOW_PUBLIC_URL]):
        yield replace(own, by_name_only=True)
    for database in settings.DATABASES.values():
        yield from _of_database(database)
    if settings.EMAIL_SERVER:
        yield OwnService("mail", settings.EMAIL_SERVER["host"], settings.EMAIL_SERVER["port"])
    yield from _tritons(settings.TRITON_URLS)


def _tritons(urls: Iterable[str]) -> Iterator[OwnService]:
    for own in _of_urls("Triton", urls):
        # gRPC and metrics use further ports.
        yield replace(own, has_more_ports=True)


def _of_redis(address: RedisAddress) -> Iterator[OwnService]:
    if not address.service:
        yield from _of_urls("Redis", [address.url])
    # The servers behind Sentinel are unknown here; INTERLOCK_OWN_SERVICES can list them.
    for host, port in address.sentinels:
        yield OwnService("Redis Sentinel", host, port)


def _of_urls(name: str, urls: Iterable[str]) -> Iterator[OwnService]:
    for url in urls:
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname, parts.port or SCHEME_PORTS.get(parts.scheme)
        except ValueError:
            # A malformed endpoint cannot be called.
            continue
        if host:
            yield OwnService(name, host, port)


def _of_database(database: dict[str, Any]) -> Iterator[OwnService]:
    ports = str(database.get("PORT") or 5432).split(",")
    for position, host in enumerate(str(database.get("HOST") or "localhost").split(",")):
        if not host.startswith("/"):
            port = ports[min(position, len(ports) - 1)]
            yield OwnService("PostgreSQL", host, int(port) if port.isdecimal() else 5432)
