"""PostgreSQL is demoted: a consumer's session stays read-only, a new session does not."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event, Thread

import pytest
import redis
from django.db import connection, connections

from apps.rollouts.models import TelemetryRow
from contract.messages import STREAMS
from controlplane import env
from controlplane.ingest import Ingester, connect
from tests.controlplane.test_ingest import send, wait_for, windows

pytestmark = pytest.mark.django_db(transaction=True)


class Demoted(Ingester):
    """An ingester whose first session is read-only, like a session during a demotion."""

    session: int | None = None

    def turn(self) -> int:
        if self.session is None:
            with connection.cursor() as cursor:
                cursor.execute("SET default_transaction_read_only = on")
                cursor.execute("SELECT pg_backend_pid()")
                self.session = cursor.fetchone()[0]
        return super().turn()

    def run(self, stop: Event) -> None:
        try:
            super().run(stop)
        finally:
            connections.close_all()


@pytest.fixture
def client() -> Iterator[redis.Redis[bytes]]:
    with connect() as client:
        client.delete(*STREAMS)
        yield client
        client.delete(*STREAMS)


def test_the_ingester_takes_a_new_session_and_loses_nothing(
    client: redis.Redis[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    stop, ingester = Event(), Demoted(client, "first", block_ms=10)
    send(client, windows())
    thread = Thread(target=ingester.run, args=(stop,))
    thread.start()
    try:
        wait_for(lambda: TelemetryRow.objects.exists(), within_s=20)
    finally:
        stop.set()
        thread.join()
    failed = [each for each in caplog.messages if each.startswith("ingest.failed")]
    assert len(failed) == 1
    assert "read-only transaction" in failed[0]


def test_a_url_can_require_the_primary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = "postgresql://me@one:5432,two:5433/interlock?target_session_attrs=read-write"
    monkeypatch.setenv("DATABASE_URL", url)
    database = env.database("DATABASE_URL", "")
    assert (database["HOST"], database["PORT"]) == ("one,two", "5432,5433")
    assert database["OPTIONS"] == {**env.PROBED, "target_session_attrs": "read-write"}
