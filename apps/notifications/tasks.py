"""Celery tasks of the outbox. Each handles due messages and returns; beat repeats them."""

from __future__ import annotations

from celery import shared_task

from apps.lib.clock import database_now
from apps.notifications.delivery import deliver_due
from apps.notifications.services import prune_messages


@shared_task(name="notifications.deliver")
def deliver_task() -> None:
    deliver_due()


@shared_task(name="notifications.prune")
def prune_task() -> None:
    prune_messages(now=database_now())
