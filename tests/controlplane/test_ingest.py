"""Ingestion: each batch has effect once, despite repeated delivery, bad entries and outages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import pytest
import redis
from django.conf import settings
from django.db import OperationalError, connection

from apps.experiments.backlog import DEAD, GROUP, read_backlog
from apps.experiments.models import OutcomeRow
from apps.rollouts.models import IngestedBatch, ShadowRow, TelemetryRow
from contract.messages import (
    FIELD,
    STREAM_EXPOSURES,
    STREAM_OUTCOMES,
    STREAM_TELEMETRY,
    STREAMS,
    Batch,
    encode_batch,
)
from controlplane import ingest
from controlplane.ingest import Ingester, apply_once, connect
from tests.experiments.factories import batch, make_metric, outcome
from tests.rollouts.test_ingestion import shadow_window, window

pytestmark = pytest.mark.django_db


@pytest.fixture
def client() -> Iterator[redis.Redis[bytes]]:
    with connect() as client:
        client.delete(*STREAMS, DEAD)
        yield client
        client.delete(*STREAMS, DEAD)


@pytest.fixture
def ingester(client: redis.Redis[bytes]) -> Ingester:
    return drained(Ingester(client, "first", block_ms=1))


def drained(ingester: Ingester) -> Ingester:
    """Take the turn that looks for pending entries, so that the next one reads new entries."""
    ingester.turn()
    return ingester


def send(client: redis.Redis[bytes], sent: Batch | bytes, stream: str = STREAM_TELEMETRY) -> bytes:
    data = encode_batch(sent) if isinstance(sent, Batch) else sent
    entry_id: bytes = client.xadd(stream, {FIELD: data})
    return entry_id


def backlog() -> dict[str, int]:
    """Return the number of entries of each stream, including `DEAD`."""
    state = read_backlog()
    return {name: each.entries for name, each in state.streams.items()} | {DEAD: state.dead}


def windows(sequence: int = 1) -> Batch:
    return batch(sequence, windows=(window(),))


def wait_for(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_entries_of_all_streams_become_rows_and_leave(
    client: redis.Redis[bytes], ingester: Ingester
) -> None:
    make_metric()
    send(client, windows())
    send(client, batch(outcomes=(outcome(),)), STREAM_OUTCOMES)
    send(client, batch(exposures=()), STREAM_EXPOSURES)
    assert backlog() == dict.fromkeys(STREAMS, 1) | {DEAD: 0}

    assert ingester.turn() == 3

    assert TelemetryRow.objects.count() == OutcomeRow.objects.count() == 1
    assert backlog() == dict.fromkeys((*STREAMS, DEAD), 0)


def test_a_batch_that_is_delivered_twice_is_applied_once(
    client: redis.Redis[bytes], ingester: Ingester
) -> None:
    send(client, windows())
    send(client, windows())
    ingester.turn()
    send(client, windows())
    ingester.turn()

    assert TelemetryRow.objects.count() == IngestedBatch.objects.count() == 1
    assert backlog()[STREAM_TELEMETRY] == 0


def test_shadow_windows_are_applied_once_and_belong_on_the_stream_of_telemetry(
    client: redis.Redis[bytes], ingester: Ingester
) -> None:
    sent = batch(shadows=(shadow_window(),), windows=(window(),))
    send(client, sent)
    send(client, sent)
    send(client, sent, STREAM_OUTCOMES)
    ingester.turn()
    ingester.turn()

    assert ShadowRow.objects.count() == TelemetryRow.objects.count() == 1
    ((_, buried),) = client.xrange(DEAD)
    assert b"do not belong on interlock:outcomes" in buried[b"reason"]


def test_a_crash_between_commit_and_acknowledgement_repeats_nothing(
    client: redis.Redis[bytes], ingester: Ingester, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(client, windows())
    monkeypatch.setattr(ingester, "_settle", raiser(ConnectionResetError()))
    with pytest.raises(ConnectionResetError):
        ingester.turn()
    assert TelemetryRow.objects.count() == 1

    Ingester(client, "first", block_ms=1).turn()

    assert TelemetryRow.objects.count() == 1
    assert backlog()[STREAM_TELEMETRY] == 0


def test_a_crash_before_the_commit_loses_nothing(
    client: redis.Redis[bytes], ingester: Ingester, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(client, windows())
    with monkeypatch.context() as patch:
        patch.setitem(ingest.APPLY, STREAM_TELEMETRY, raiser(OperationalError("gone")))
        with pytest.raises(OperationalError):
            ingester.turn()
    assert IngestedBatch.objects.count() == 0

    Ingester(client, "first", block_ms=1).turn()

    assert TelemetryRow.objects.count() == 1


def test_entries_of_a_dead_consumer_are_claimed(
    client: redis.Redis[bytes], ingester: Ingester, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(client, windows())
    client.xreadgroup(GROUP, "dead", {STREAM_TELEMETRY: ">"})
    monkeypatch.setattr(ingest, "CLAIM_IDLE_MS", 0)

    Ingester(client, "second", block_ms=1).turn()

    assert TelemetryRow.objects.count() == 1
    assert backlog()[STREAM_TELEMETRY] == 0


@pytest.mark.parametrize(
    ("poison", "reason"),
    [
        (b"\xc1nonsense", "not a batch of schema"),
        (b"", "not a batch of schema"),
        (encode_batch(batch(outcomes=(outcome(),))), "carries outcomes"),
        (encode_batch(batch(shadows=(shadow_window(flips=-1),))), "cannot be stored"),
        (encode_batch(batch(windows=(window(ended_at_ms=2**62),))), "cannot be stored"),
        (encode_batch(batch(windows=(window(model="m" * 101),))), "cannot be stored"),
        (encode_batch(batch(windows=(window(requests=-1),))), "cannot be stored"),
    ],
)
def test_a_bad_entry_moves_to_dead_with_its_reason_and_blocks_no_other(
    client: redis.Redis[bytes], ingester: Ingester, poison: bytes, reason: str
) -> None:
    send(client, windows(11))
    entry_id = send(client, poison)
    send(client, windows(12))

    ingester.turn()

    assert TelemetryRow.objects.count() == 2
    ((_, buried),) = client.xrange(DEAD)
    assert reason in buried[b"reason"].decode()
    assert (buried[b"stream"], buried[b"id"]) == (STREAM_TELEMETRY.encode(), entry_id)
    assert buried[FIELD] == poison
    assert backlog() == dict.fromkeys(STREAMS, 0) | {DEAD: 1}


def test_an_entry_deleted_while_pending_is_acknowledged(
    client: redis.Redis[bytes], ingester: Ingester
) -> None:
    entry_id = send(client, windows())
    client.xreadgroup(GROUP, "first", {STREAM_TELEMETRY: ">"})
    client.xdel(STREAM_TELEMETRY, entry_id)

    Ingester(client, "first", block_ms=1).turn()

    assert client.xpending(STREAM_TELEMETRY, GROUP)["pending"] == 0


def test_behind_a_backlog_more_is_read_at_once(
    client: redis.Redis[bytes], ingester: Ingester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "READ_COUNT", 2)
    monkeypatch.setattr(ingest, "READ_COUNT_MAX", 8)
    ingester = drained(Ingester(client, "first", block_ms=1))
    for number in range(20):
        send(client, windows(number))

    assert [ingester.turn() for _ in range(6)] == [2, 4, 8, 6, 0, 0]

    assert TelemetryRow.objects.count() == 20
    send(client, windows(21))
    assert ingester.turn() == 1


def test_large_batches_are_applied_in_transactions_of_their_own(
    client: redis.Redis[bytes], ingester: Ingester, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied: list[int] = []

    def apply(batches: Sequence[Batch], _: object) -> None:
        applied.append(len(batches))

    monkeypatch.setitem(ingest.APPLY, STREAM_TELEMETRY, apply)
    size = len(encode_batch(windows(1)))
    monkeypatch.setattr(ingest, "APPLY_BYTES", 2 * size)
    for number in range(1, 6):
        send(client, windows(number))
    huge = batch(6, windows=(window(),) * 3)
    send(client, huge)

    assert ingester.turn() == 6

    assert applied == [2, 2, 1, 1]


def test_batches_are_distinguished_by_instance_boot_and_stream() -> None:
    entries = [
        ingest.Entry(b"1-1", b"", Batch(instance=instance, boot=boot, sequence=1))
        for instance in ("a", "b")
        for boot in ("x", "y")
    ]

    assert [apply_once(stream, entries) for stream in STREAMS] == [4, 4, 4]
    assert apply_once(STREAM_TELEMETRY, entries) == 0


@pytest.mark.django_db(transaction=True)
def test_it_continues_after_outages_of_postgresql_and_redis(client: redis.Redis[bytes]) -> None:
    with running():
        send(client, windows(1))
        wait_for(lambda: TelemetryRow.objects.count() == 1)

        end_other_connections()
        send(client, windows(2))
        wait_for(lambda: TelemetryRow.objects.count() == 2)

        client.client_kill_filter(_type="normal", skipme=True)
        client.delete(*STREAMS)
        send(client, windows(3))
        wait_for(lambda: TelemetryRow.objects.count() == 3)
        wait_for(lambda: backlog()[STREAM_TELEMETRY] == 0)


def test_the_command_stops_at_sigterm(client: redis.Redis[bytes]) -> None:
    command = [sys.executable, "manage.py", "ingest", "--consumer", "by-command"]
    process = subprocess.Popen(command, env=os.environ | {"REDIS_URL": settings.REDIS_URL})
    try:
        wait_for(lambda: bool(client.exists(STREAM_OUTCOMES)))
        process.send_signal(signal.SIGTERM)

        assert process.wait(timeout=10) == 0
    finally:
        process.kill()


def raiser(error: Exception) -> Callable[..., Any]:
    def fail(*args: object) -> None:
        raise error

    return fail


def end_other_connections() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


@contextmanager
def running() -> Iterator[None]:
    """Run an ingester in a thread with its own connections."""
    stop = Event()

    def run() -> None:
        with connect() as client:
            Ingester(client, "threaded", block_ms=20).run(stop)
        connection.close()

    thread = Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()


def test_dead_entries_are_bounded_in_bytes(
    ingester: Ingester, client: redis.Redis[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "DEAD_BYTES_MAX", 1_000_000)
    for number in range(60):
        send(client, b"%d" % number + b"x" * 50_000)
        ingester.turn()
    assert client.memory_usage(DEAD) < 1_500_000
    ((_, newest),) = client.xrevrange(DEAD, count=1)
    assert newest[FIELD].startswith(b"59")
