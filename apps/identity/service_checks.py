"""Checks whether Triton and MLflow accept commands without authentication."""

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
# A server that was not checked for this long is not part of the installation any more.
FORGOTTEN = timedelta(minutes=15)


def check_services() -> None:
    """Query each server once, without credentials, and store the result."""
    for kind, address, cluster, is_open in _services():
        _check(kind, address, cluster, is_open)
    ServiceCheck.objects.filter(checked_at__lt=database_now() - FORGOTTEN).delete()


def _services() -> Iterator[tuple[str, str, str, Callable[[], bool]]]:
    """Yield kind, address, cluster and check of each server."""
    for cluster in ServingCluster.objects.all():
        for endpoint in endpoints_of(cluster):
            yield Kind.TRITON, endpoint.url, cluster.name, endpoint.is_open
    if settings.MLFLOW_TRACKING_URI:
        url = urlsplit(settings.MLFLOW_TRACKING_URI)
        shown = url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()
        yield Kind.MLFLOW, shown, "", mlflow.is_open


def _check(kind: str, address: str, cluster: str, is_open: Callable[[], bool]) -> None:
    trouble, result = "", False
    try:
        result = is_open()
    except InterlockError as error:
        # It may be another server when it returns: the previous result does not count.
        trouble = error.message
    row, _ = ServiceCheck.objects.update_or_create(
        address=address,
        defaults={
            "kind": kind,
            "cluster": cluster,
            "is_open": result,
            "trouble": trouble,
            "checked_at": database_now(),
        },
    )
    if row.danger:
        log.warning("service.open %s %s: %s", kind, address, row.danger)


def open_services(now: datetime) -> list[ServiceCheck]:
    """Return the servers that answered without credentials when last checked."""
    return [row for row in recent_checks(now) if row.is_open]


def recent_checks(now: datetime) -> list[ServiceCheck]:
    """Return the latest result of each server."""
    return list(ServiceCheck.objects.filter(checked_at__gte=now - FORGOTTEN))
