"""Asks the servers that this installation commands whether they take commands from strangers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from django.conf import settings

from apps.identity.models import ServiceCheck
from apps.lib.clock import database_now
from apps.lib.errors import InterlockError
from apps.models import mlflow
from apps.models.models import ServingCluster
from apps.models.triton import endpoints_of

log = logging.getLogger(__name__)

Kind = ServiceCheck.Kind
# What was not asked for so long is no server of ours any more.
FORGOTTEN = timedelta(minutes=15)


def check_services() -> None:
    """Ask each server once, without a secret, and keep what it said."""
    for kind, address, cluster, is_open in _services():
        _check(kind, address, cluster, is_open)
    ServiceCheck.objects.filter(checked_at__lt=database_now() - FORGOTTEN).delete()


def _services() -> Iterator[tuple[str, str, str, Callable[[], bool]]]:
    """Yield each server's kind, its address, its cluster, and what asks it."""
    for cluster in ServingCluster.objects.all():
        for endpoint in endpoints_of(cluster):
            yield Kind.TRITON, endpoint.url, cluster.name, endpoint.is_open
    if settings.MLFLOW_TRACKING_URI:
        url = urlsplit(settings.MLFLOW_TRACKING_URI)
        shown = url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()
        yield Kind.MLFLOW, shown, "", mlflow.is_open


def _check(kind: str, address: str, cluster: str, is_open: Callable[[], bool]) -> None:
    trouble, answer = "", False
    try:
        answer = is_open()
    except InterlockError as error:
        # It may come back as another one: what it said before says nothing.
        trouble = error.message
    row, _ = ServiceCheck.objects.update_or_create(
        address=address,
        defaults={
            "kind": kind,
            "cluster": cluster,
            "is_open": answer,
            "trouble": trouble,
            "checked_at": database_now(),
        },
    )
    if row.danger:
        log.warning("service.open %s %s: %s", kind, address, row.danger)


def open_services(now: datetime) -> list[ServiceCheck]:
    """Return the servers that took a stranger's question lately."""
    return [row for row in recent_checks(now) if row.is_open]


def recent_checks(now: datetime) -> list[ServiceCheck]:
    """Return what each server said when it was last asked."""
    return list(ServiceCheck.objects.filter(checked_at__gte=now - FORGOTTEN))
