"""Retention is killed repeatedly while new rows arrive; it loses no row that must stay."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator

import psycopg
import pytest
import redis

from embedded.stack import Stack
from tests.controlplane import test_ingest_killed
from tests.controlplane.test_ingest_killed import (
    client,
    expect_exact_counts,
    ingester,
    send,
    stack,
    wait_until_left,
)
from tests.rollouts.test_ingestion import window

pytestmark = pytest.mark.django_db

__all__ = ["client", "stack"]

DAYS = 30
WINDOWS_A_DAY = 4_000
OUTCOMES_A_DAY = 2_000
KILLS = 6

OF_A_DAY = """
    CREATE TABLE rollouts_telemetryrow_{n} PARTITION OF rollouts_telemetryrow
        FOR VALUES FROM ('{start}') TO ('{end}')
"""
WINDOWS = """
    INSERT INTO rollouts_telemetryrow
        (instance, model_name, version_number, variant, split, generation, started_at, ended_at,
         interval_started_at, requests, errors, fallbacks, units, unit_errors, anonymous,
         anonymous_errors, latency)
    SELECT 'old', 'digits', '1', 'stable', '', 1, at, at, at, 1000000, 0, 0, 0, 0, 0, 0, '{}'
    FROM (SELECT date_trunc('day', now(), 'UTC') - mod(n, %s) * interval '1 day'
                 - interval '6 hours' AS at FROM generate_series(0, %s) AS n) AS times
"""
OUTCOMES = """
    INSERT INTO experiments_outcomerow (event_id, unit, metric_id, value, occurred_at, received_at)
    SELECT 'old-' || n, 'u', 1, 1, at, at
    FROM (SELECT n, now() - interval '410 days' - n / %s * interval '1 day' AS at
          FROM generate_series(0, %s) AS n) AS times ORDER BY at
"""


@pytest.fixture
def old(stack: Stack) -> Iterator[psycopg.Connection[object]]:
    """Insert a month of windows, in partitions of a day, and a month of expired outcomes."""
    with psycopg.connect(stack.database_url, autocommit=True) as own:
        own.execute("SET TimeZone = 'UTC'")
        partitions = own.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits "
            "WHERE inhparent = 'rollouts_telemetryrow'::regclass "
            "AND inhrelid::regclass::text NOT LIKE '%_rest'"
        ).fetchall()
        for (name,) in partitions:
            own.execute(f"DROP TABLE {name}")
        for n in range(DAYS + 1):
            start, end = own.execute(
                "SELECT day, day + interval '1 day' FROM "
                "(SELECT date_trunc('day', now(), 'UTC') - %s * interval '1 day' AS day) AS d",
                [n],
            ).fetchone()
            own.execute(OF_A_DAY.format(n=n, start=start, end=end))
        own.execute(WINDOWS, [DAYS, DAYS * WINDOWS_A_DAY])
        own.execute(OUTCOMES, [OUTCOMES_A_DAY, DAYS * OUTCOMES_A_DAY])
        yield own


def left(own: psycopg.Connection[object], days: int) -> int:
    row = own.execute(
        "SELECT (SELECT count(*) FROM rollouts_telemetryrow "
        "        WHERE instance = 'old' AND ended_at < now() - %s * interval '1 day')"
        " + (SELECT count(*) FROM experiments_outcomerow WHERE event_id LIKE 'old-%%')",
        [days],
    ).fetchone()
    return row[0]


def start(stack: Stack) -> subprocess.Popen[bytes]:
    command = [sys.executable, "manage.py", "retention"]
    env = os.environ | {"DATABASE_URL": stack.database_url}
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Date incoming windows now, so that they must not be deleted."""
    at_ms = round(time.time() * 1_000)
    times = {"started_at_ms": at_ms, "ended_at_ms": at_ms, "interval_started_at_ms": at_ms}
    monkeypatch.setattr(test_ingest_killed, "window", lambda **f: window(**times, **f))


def test_a_killed_run_loses_nothing_and_the_next_one_continues(
    stack: Stack, client: redis.Redis[bytes], old: psycopg.Connection[object]
) -> None:
    before = left(old, 15)
    sent = send(client)
    chance = random.Random(7)
    with ingester(stack, client):
        for _ in range(KILLS):
            process = start(stack)
            # A random time during its work, or before it.
            end = time.monotonic() + chance.uniform(0.5, 3.0)
            while time.monotonic() < end and process.poll() is None:
                time.sleep(0.01)
            process.kill()
            process.wait()
        assert start(stack).wait(120) == 0
        wait_until_left(client, 0)
    assert sent
    assert before > DAYS * OUTCOMES_A_DAY
    assert left(old, 15) == 0
    kept = old.execute("SELECT count(*) FROM rollouts_telemetryrow WHERE instance = 'old'")
    assert kept.fetchone()[0] >= 13 * WINDOWS_A_DAY
    old.execute("DELETE FROM rollouts_telemetryrow WHERE instance = 'old'")
    expect_exact_counts(stack)
