"""Celery tasks of the registry. Each handles due work and returns; beat repeats them."""

from __future__ import annotations

import logging
import time

from celery import shared_task

from apps.lib.errors import InterlockError
from apps.models.deletion import finish_deletions
from apps.models.deployments import reconcile_deployments
from apps.models.locks import try_lock
from apps.models.registration_jobs import work_registrations
from apps.models.registry import SYNC_LOCK, sync_registry
from apps.models.versions import sweep_scratch

log = logging.getLogger(__name__)

# The key of the advisory lock of runs; any constant.
REGISTER_LOCK = 0x1E710E


@shared_task(name="models.reconcile_deployments")
def reconcile_deployments_task() -> None:
    reconcile_deployments()
    finish_deletions()


@shared_task(name="models.sync_registry")
def sync_registry_task() -> None:
    # A large file takes longer than the schedule: one run at a time keeps other workers free.
    with try_lock(SYNC_LOCK) as is_locked:
        if is_locked:
            _sync_registry()
            sweep_scratch(time.time())


@shared_task(name="models.register")
def register_task() -> None:
    # One run at a time over all workers: hostile files block one worker slot, not the rollouts.
    with try_lock(REGISTER_LOCK) as is_locked:
        if is_locked:
            work_registrations()


def _sync_registry() -> None:
    try:
        report = sync_registry()
    except InterlockError as error:
        # MLflow may be starting or down: nothing else depends on it.
        log.info("registry.away %s", error.message)
        return
    if report.has_news:
        log.info(
            "registry.synced imported=%s refused=%s waiting=%s aliases=%d pushed=%s",
            *(",".join(names) or "-" for names in (report.imported, report.refused)),
            ",".join(report.waiting) or "-",
            report.aliases,
            ",".join(report.pushed) or "-",
        )
