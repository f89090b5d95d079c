"""Celery's ticks over the registry. Each does what is due and returns; beat calls again."""

from __future__ import annotations

import logging

from celery import shared_task

from apps.lib.errors import Unavailable
from apps.models.deployments import reconcile_deployments
from apps.models.registry import sync_registry

log = logging.getLogger(__name__)


@shared_task(name="models.reconcile_deployments")
def reconcile_deployments_task() -> None:
    reconcile_deployments()


@shared_task(name="models.sync_registry")
def sync_registry_task() -> None:
    try:
        report = sync_registry()
    except Unavailable as error:
        # The registry may still be starting, or be away for the night: nothing here needs it.
        log.info("registry.away %s", error.message)
        return
    if report.imported or report.refused or report.aliases:
        log.info(
            "registry.synced imported=%s refused=%s aliases=%d",
            ",".join(report.imported) or "-",
            ",".join(report.refused) or "-",
            report.aliases,
        )
