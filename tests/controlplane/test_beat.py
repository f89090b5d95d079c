"""Beat bounds the number of queued tasks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from celery import Celery
from celery.schedules import schedule
from django.conf import settings

from controlplane import beat
from controlplane.beat import BoundedScheduler
from controlplane.ingest import connect

QUEUE = "test-beat"


@pytest.fixture
def client(servers: None) -> Iterator[redis.Redis[bytes]]:
    with connect() as client:
        client.delete(QUEUE)
        yield client
        client.delete(QUEUE)


@pytest.fixture
def scheduler(servers: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[BoundedScheduler]:
    monkeypatch.setattr(beat, "CHECK_S", 0.0)
    app = Celery("beat", fixups=[], broker=settings.REDIS_URL, set_as_current=False)
    app.conf.update(task_default_queue=QUEUE, task_ignore_result=True)
    yield BoundedScheduler(app, lazy=True)
    app.close()


def test_queued_tasks_are_bounded(
    client: redis.Redis[bytes], scheduler: BoundedScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beat, "WAITING_MAX", 5)
    entry = scheduler.Entry("tick", "tick", schedule=schedule(1.0), app=scheduler.app)
    for _ in range(9):
        scheduler.apply_entry(entry)
    assert client.llen(QUEUE) == 5
    client.ltrim(QUEUE, 0, 2)
    for _ in range(9):
        scheduler.apply_entry(entry)
    assert client.llen(QUEUE) == 5


def test_an_empty_queue_has_room(client: redis.Redis[bytes], scheduler: BoundedScheduler) -> None:
    entry = scheduler.Entry("tick", "tick", schedule=schedule(1.0), app=scheduler.app)
    scheduler.apply_entry(entry)
    assert client.llen(QUEUE) == 1
