"""A worker killed with -9 while it delivers: nothing is lost, duplicates have the same id."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import pytest
from django.db import connection

from apps.notifications.delivery import deliver_due
from apps.notifications.models import OutboxMessage
from apps.notifications.outbox import LEASE
from tests.notifications.receivers import Endpoint, Received, verified
from tests.notifications.rows import enqueue_event, make_target, pass_time

pytestmark = pytest.mark.django_db(transaction=True)

ROOT = Path(__file__).parents[2]


def database_url() -> str:
    place = connection.settings_dict
    login = f"{place['USER']}:{place['PASSWORD']}"
    return f"postgresql://{login}@{place['HOST']}:{place['PORT']}/{place['NAME']}"


@contextmanager
def worker() -> Iterator[subprocess.Popen[str]]:
    """A delivering worker process; it is killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.notifications.deliver", "60"],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": database_url()},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def wait_for_the_lock_to_be_free() -> None:
    """Wait until the server notices that the session of the killed worker ended."""
    until = monotonic() + 10
    while monotonic() < until:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
            if cursor.fetchone() == (0,):
                return
        sleep(0.05)


def kill_at(
    number: int, process: subprocess.Popen[str], done: threading.Event, endpoint: Endpoint
) -> Callable[[Received], None]:
    """Return a callback that kills the worker after `number` requests, before the response."""

    def before(received: Received) -> None:
        if len(endpoint.received) == number and not done.is_set():
            os.kill(process.pid, signal.SIGKILL)
            done.set()

    return before


@pytest.mark.parametrize("number", [1, 3])
def test_a_worker_killed_while_it_sends_loses_nothing(endpoint: Endpoint, number: int) -> None:
    target = make_target(endpoint.url)
    messages = [str(enqueue_event(number=i).pk) for i in range(5)]
    killed = threading.Event()
    with worker() as process:
        endpoint.before = kill_at(number, process, killed, endpoint)
        assert killed.wait(20)
        process.wait(10)
    wait_for_the_lock_to_be_free()
    under_way = endpoint.received[number - 1].id
    while OutboxMessage.objects.filter(delivered_at=None).exists():
        pass_time(seconds=LEASE.total_seconds())
        deliver_due()

    # Only the message that was sent and not settled came twice, under the same id.
    assert sorted(endpoint.ids()) == sorted([*messages, under_way])
    assert all(verified(received, target.secret) for received in endpoint.received)
