"""Celery tasks of identities."""

from __future__ import annotations

from celery import shared_task

from apps.identity.refusals import prune_refusals
from apps.identity.service_checks import check_services
from apps.lib.clock import database_now


@shared_task(name="identity.check_services")
def check_services_task() -> None:
    check_services()
    prune_refusals(database_now())
