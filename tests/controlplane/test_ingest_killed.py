"""The ingester and PostgreSQL are killed while they work, and every count stays exact.

The test runs real processes with their own PostgreSQL, which is killed; it has the tests' schema.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
import redis
from django.conf import settings
from django.db import connection, models

from apps.experiments.models import Experiment, Metric
from apps.models.models import RegisteredModel
from contract.messages import (
    FIELD,
    STREAM_EXPOSURES,
    STREAM_OUTCOMES,
    STREAM_TELEMETRY,
    STREAMS,
    Batch,
    Exposure,
    Outcome,
    encode_batch,
)
from embedded.postgres import find_bin
from embedded.stack import Stack, running
from tests.rollouts.test_ingestion import window

# Creates the tests' database, whose schema is copied.
pytestmark = pytest.mark.django_db

ENTRIES = 1_500
PER_ENTRY = 10
# Each REPEATED-th entry is delivered twice.
REPEATED = 50
WITHIN_S = 20.0
NOW = datetime.now(UTC)
EXPERIMENT = UUID("6d1b0cf4-3c0f-4d0e-9a53-0d0f3f6a7c11")
TABLES = (
    "registry_registeredmodel", "experiments_metric", "rollouts_ingestedbatch",
    "rollouts_telemetryrow", "experiments_exposurerow", "experiments_outcomerow",
)  # fmt: skip


@pytest.fixture(scope="module")
def stack(
    django_db_setup: None, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Run a PostgreSQL for this module, with all tables."""
    with running(tmp_path_factory.mktemp("killed"), only={"postgres"}) as stack:
        programs = find_bin(os.environ)
        with django_db_blocker.unblock():
            of_tests = str(connection.get_connection_params()["dbname"])
        source = f"{os.environ['DATABASE_URL'].rpartition('/')[0]}/{of_tests}"
        dump = [programs / "pg_dump", "--schema-only", "--no-owner", source]
        schema = subprocess.run(dump, capture_output=True, check=True).stdout
        load = [programs / "psql", "--quiet", "--set=ON_ERROR_STOP=1", stack.database_url]
        subprocess.run(load, input=schema, capture_output=True, check=True)
        yield stack


@pytest.fixture
def client(stack: Stack) -> Iterator[redis.Redis[bytes]]:
    """Return a client of a separate Redis database; empty the tables and streams."""
    url = settings.REDIS_URL.rpartition("/")[0] + "/7"
    with psycopg.connect(stack.database_url, autocommit=True) as own:
        own.execute(f"TRUNCATE {', '.join(TABLES)} CASCADE")
        store(own, RegisteredModel(id=1, name="digits"))
        store(
            own, Experiment(id=EXPERIMENT, model_id=1, name="e", variant_salt="s", created_at=NOW)
        )
        store(own, Metric(id=1, name="amount", kind=Metric.Kind.MEAN))
    with redis.Redis.from_url(url) as client:
        client.delete(*STREAMS)
        yield client
        client.delete(*STREAMS)


def store(own: psycopg.Connection[Any], row: models.Model) -> None:
    fields = [f for f in row._meta.concrete_fields if not isinstance(f, models.AutoField) or row.pk]
    values = [f.get_db_prep_save(f.pre_save(row, add=True), connection) for f in fields]
    names = ", ".join(f.column for f in fields)
    places = ", ".join(["%s"] * len(fields))
    own.execute(f"INSERT INTO {row._meta.db_table} ({names}) VALUES ({places})", values)


@contextmanager
def ingester(stack: Stack, client: redis.Redis[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    address = client.connection_pool.connection_kwargs
    env = os.environ | {
        "DATABASE_URL": stack.database_url,
        "REDIS_URL": f"redis://:{address['password'] or ''}@{address['host']}:{address['port']}/"
        f"{address['db']}",
    }
    command = [sys.executable, "manage.py", "ingest", "--consumer", "one"]
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def send(client: redis.Redis[bytes]) -> int:
    """Add outcomes, exposures and telemetry to their streams; return the number of entries."""
    pipe = client.pipeline(transaction=False)
    sent = 0
    for number in range(ENTRIES):
        for stream, data in entries(number).items():
            for _ in range(2 if number % REPEATED == 0 else 1):
                pipe.xadd(stream, {FIELD: data})
                sent += 1
    pipe.execute()
    return sent


def entries(number: int) -> dict[str, bytes]:
    at_ms = round(NOW.timestamp() * 1_000)
    key = {"instance": "proxy", "boot": "b", "sequence": number}
    names = [f"{number}-{place}" for place in range(PER_ENTRY)]
    outcomes = tuple(
        Outcome(
            event_id=name, unit_id=f"unit-{name}", metric="amount", value=1.0, occurred_at_ms=at_ms
        )
        for name in names
    )
    exposures = tuple(
        Exposure(
            experiment=str(EXPERIMENT),
            unit=f"unit-{name}",
            variant="weak",
            version="1",
            at_ms=at_ms,
        )
        for name in names
    )
    return {
        STREAM_OUTCOMES: encode_batch(Batch(**key, outcomes=outcomes)),
        STREAM_EXPOSURES: encode_batch(Batch(**key, exposures=exposures)),
        STREAM_TELEMETRY: encode_batch(Batch(**key, windows=(window(requests=3),))),
    }


def wait_until_left(client: redis.Redis[bytes], entries_max: int) -> int:
    """Wait until at most `entries_max` entries are left; return their number."""
    end = time.monotonic() + WITHIN_S
    while (left := sum(client.xlen(stream) for stream in STREAMS)) > entries_max:
        assert time.monotonic() < end, f"{left} entries are left"
        time.sleep(0.002)
    return left


def expect_exact_counts(stack: Stack) -> None:
    events = ENTRIES * PER_ENTRY
    with psycopg.connect(stack.database_url) as own:
        assert own.execute(
            "SELECT (SELECT count(*) FROM experiments_outcomerow),"
            "(SELECT count(*) FROM experiments_exposurerow),"
            "(SELECT sum(requests)::int FROM rollouts_telemetryrow),"
            "(SELECT count(*) FROM rollouts_ingestedbatch)"
        ).fetchone() == (events, events, 3 * ENTRIES, 3 * ENTRIES)


def test_a_killed_ingester_and_a_crashed_postgresql_lose_and_repeat_nothing(
    stack: Stack, client: redis.Redis[bytes]
) -> None:
    sent = send(client)

    with ingester(stack, client) as process:
        wait_until_left(client, sent - 1)
        process.send_signal(signal.SIGKILL)
        process.wait()
    left = wait_until_left(client, sent)
    assert left > 0, "it was done before it was killed"
    with ingester(stack, client):
        wait_until_left(client, left - 1)
        pid = int((Path(stack.state_dir) / "postgres" / "postmaster.pid").read_text().split()[0])
        # SIGQUIT ends PostgreSQL at once, as a crash does; the supervisor starts it again.
        os.kill(pid, signal.SIGQUIT)
        assert wait_until_left(client, sent) > 0, "it was done before PostgreSQL crashed"
        wait_until_left(client, 0)

    expect_exact_counts(stack)
