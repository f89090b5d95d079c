"""Tables partitioned by time: created ahead, dropped whole, and no other row is lost."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection

from apps.lib.partitions import (
    PartitionedTable,
    create_ahead,
    delete_batch,
    drop_partition,
    end_of,
    estimate_row_bytes,
    list_leaves,
    list_partitions,
    measure_size,
    start_of,
)

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
THINGS = PartitionedTable("things", "at", "day")


@pytest.fixture(autouse=True)
def table() -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE things (id int NOT NULL, at timestamptz NOT NULL) PARTITION BY RANGE (at)"
        )
        cursor.execute("CREATE INDEX ON things (at)")
        cursor.execute("CREATE TABLE things_rest PARTITION OF things DEFAULT")
    yield
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE things")


def put(number: int, at: datetime) -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO things VALUES (%s, %s)", [number, at])


def where() -> dict[int, str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT id, tableoid::regclass::text FROM things ORDER BY id")
        return dict(cursor.fetchall())


def test_spans_begin_in_utc_and_end_where_the_next_begins() -> None:
    assert start_of(NOW, "day") == datetime(2026, 3, 1, tzinfo=UTC)
    assert end_of(NOW, "day") == datetime(2026, 3, 2, tzinfo=UTC)
    assert end_of(datetime(2026, 12, 31, 23, tzinfo=UTC), "month") == datetime(
        2027, 1, 1, tzinfo=UTC
    )


def test_partitions_are_created_ahead_once() -> None:
    assert create_ahead(THINGS, NOW) == 4
    assert create_ahead(THINGS, NOW) == 0
    assert create_ahead(THINGS, NOW + DAY) == 1
    put(1, NOW)
    assert where() == {1: "things_20260301"}
    assert list_partitions(THINGS)[0].until == end_of(NOW, "day")


def test_rows_that_came_before_their_partition_are_moved_into_it() -> None:
    for number, at in enumerate([NOW - 9 * DAY, NOW, NOW + DAY, NOW + 90 * DAY]):
        put(number, at)
    create_ahead(THINGS, NOW)
    assert where() == {
        0: "things_rest", 1: "things_20260301", 2: "things_20260302", 3: "things_rest",
    }  # fmt: skip


def test_a_partition_is_dropped_except_for_surviving_rows() -> None:
    create_ahead(THINGS, NOW)
    for number in range(5):
        put(number, NOW)
    freed = drop_partition(THINGS, list_partitions(THINGS)[0], "old.id % 2 = 1")
    assert where() == {1: "things_rest", 3: "things_rest"}
    assert freed.rows == 3
    assert freed.bytes > 0
    assert "things_20260301" not in list_leaves("things")


def test_rows_of_the_default_partition_are_deleted_in_batches() -> None:
    for number in range(5):
        put(number, NOW - number * DAY)
    due = [NOW - 2 * DAY + timedelta(minutes=1)]
    assert delete_batch(THINGS.rest, "old.at < %s", due, 2).rows == 2
    assert delete_batch(THINGS.rest, "old.at < %s", due, 2).rows == 1
    assert delete_batch(THINGS.rest, "old.at < %s", due, 2).rows == 0
    assert set(where()) == {0, 1}


def test_sizes_are_those_of_all_partitions() -> None:
    create_ahead(THINGS, NOW)
    put(1, NOW)
    put(2, NOW - DAY)
    assert measure_size("things").rows == 2
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE things")
    assert estimate_row_bytes("things") > 0
