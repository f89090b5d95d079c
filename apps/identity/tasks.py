"""Celery's ticks over who is who."""

from __future__ import annotations

from celery import shared_task

from apps.identity.service_checks import check_services


@shared_task(name="identity.check_services")
def check_services_task() -> None:
    check_services()
