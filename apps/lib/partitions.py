"""Tables partitioned by time: one partition for each day or month, and a default partition.

Partitions are created ahead and dropped whole, which costs the same for a thousand rows as for a
billion. Each step is one transaction with a short lock timeout, so it never blocks writers for
long, and it may be killed at any time. Rows whose partition does not exist, because it was not
created yet or their clock is wrong, are in the default partition `TABLE_rest`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from django.db import connection, transaction
from psycopg import sql

Span = Literal["day", "month"]

# Writers queue behind this transaction while it waits for a lock.
LOCK_MS = 2_000
# The number of partitions that are created ahead of time.
AHEAD = {"day": 3, "month": 2}

LEAVES = """
    SELECT child.relname, pg_get_expr(child.relpartbound, child.oid)
    FROM pg_inherits JOIN pg_class AS child ON child.oid = inhrelid
    WHERE inhparent = %s::regclass ORDER BY child.relname
"""
SIZE = "SELECT reltuples, pg_total_relation_size(oid) FROM pg_class WHERE oid = %s::regclass"
BYTES_PER_ROW = """
    SELECT sum(pg_total_relation_size(oid)) / nullif(sum(greatest(reltuples, 0)), 0)
    FROM pg_class WHERE oid = ANY(%s::regclass[])
"""
COUNTED_BYTES_MAX = 64 * 1024**2
UPPER = re.compile(r"TO \('([^']+)'\)")


@dataclass(frozen=True)
class PartitionedTable:
    """A table that is partitioned by `column` into spans."""

    table: str
    column: str
    span: Span

    @property
    def rest(self) -> str:
        return f"{self.table}_rest"


@dataclass(frozen=True)
class Partition:
    """A partition whose rows are all before `until`."""

    name: str
    until: datetime


@dataclass(frozen=True)
class Freed:
    rows: int = 0
    bytes: int = 0

    def __add__(self, other: Freed) -> Freed:
        return Freed(self.rows + other.rows, self.bytes + other.bytes)


def start_of(at: datetime, span: Span) -> datetime:
    """Return the start of the day or month of `at`, in UTC."""
    day = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return day if span == "day" else day.replace(day=1)


def end_of(at: datetime, span: Span) -> datetime:
    """Return the start of the next day or month, in UTC."""
    start = start_of(at, span)
    # 32 days after the first of any month is in the next month.
    return start_of(start + timedelta(days=1 if span == "day" else 32), span)


def list_partitions(parent: PartitionedTable) -> list[Partition]:
    """Return the partitions, oldest first, without the default partition."""
    with connection.cursor() as cursor:
        cursor.execute(LEAVES, [parent.table])
        rows = cursor.fetchall()
    bounded = [
        Partition(name, datetime.fromisoformat(upper[1]).astimezone(UTC))
        for name, bound in rows
        if (upper := UPPER.search(bound))
    ]
    return sorted(bounded, key=lambda partition: partition.until)


def create_ahead(parent: PartitionedTable, now: datetime) -> int:
    """Create the missing partitions for now and ahead; return their number."""
    until = max(
        (each.until for each in list_partitions(parent)), default=start_of(now, parent.span)
    )
    count = 0
    for start in _starts(now, parent.span):
        if start >= until:
            _create(parent, start)
            count += 1
    return count


def _starts(now: datetime, span: Span) -> Iterator[datetime]:
    start = start_of(now, span)
    for _ in range(AHEAD[span] + 1):
        yield start
        start = end_of(start, span)


@transaction.atomic
def _create(parent: PartitionedTable, start: datetime) -> None:
    """Create one partition and move its rows from the default partition into it."""
    end = end_of(start, parent.span)
    with connection.cursor() as cursor:
        _set_lock_timeout(cursor)
        for statement in (
            "CREATE TABLE {new} (LIKE {table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)",
            "WITH moved AS (DELETE FROM {rest} WHERE {column} >= {start} AND {column} < {end} "
            "RETURNING *) INSERT INTO {new} SELECT * FROM moved",
            "ALTER TABLE {table} ATTACH PARTITION {new} FOR VALUES FROM ({start}) TO ({end})",
        ):
            cursor.execute(
                sql.SQL(statement).format(
                    new=sql.Identifier(f"{parent.table}_{start:%Y%m%d}"),
                    table=sql.Identifier(parent.table),
                    rest=sql.Identifier(parent.rest),
                    column=sql.Identifier(parent.column),
                    start=sql.Literal(start.isoformat()),
                    end=sql.Literal(end.isoformat()),
                )
            )


@transaction.atomic
def drop_partition(parent: PartitionedTable, partition: Partition, survives: str = "") -> Freed:
    """Drop a partition; rows for which the SQL condition `survives` holds move to the default
    partition. The condition refers to a row as `old`.
    """
    name = sql.Identifier(partition.name)
    table = sql.Identifier(parent.table)
    with connection.cursor() as cursor:
        _set_lock_timeout(cursor)
        freed = _size(cursor, partition.name)
        kept = 0
        if survives:
            # Before the partition is detached: the condition may query the whole table.
            kept = _copy_survivors(cursor, name, survives)
        cursor.execute(sql.SQL("ALTER TABLE {} DETACH PARTITION {}").format(table, name))
        if survives:
            cursor.execute(sql.SQL("INSERT INTO {} SELECT * FROM set_aside").format(table))
            cursor.execute("DROP TABLE set_aside")
        cursor.execute(sql.SQL("DROP TABLE {}").format(name))
    return Freed(max(0, freed.rows - kept), freed.bytes)


def _copy_survivors(cursor: Any, name: sql.Identifier, survives: str) -> int:
    start = "CREATE TEMPORARY TABLE set_aside ON COMMIT DROP AS SELECT old.* FROM {} AS old WHERE "
    cursor.execute(sql.SQL(start).format(name) + sql.SQL(survives))
    return int(cursor.rowcount)


@transaction.atomic
def delete_batch(table: str, condition: str, parameters: Sequence[Any], limit: int) -> Freed:
    """Delete up to `limit` rows for which the SQL condition holds, in one transaction.

    The table must not be partitioned; the condition refers to a row as `old`. The freed bytes are
    an estimate, the rows' share of the table: later rows reuse the space.
    """
    # The table name and the condition come from our code, never from a user.
    statement = f"""
        DELETE FROM {table} WHERE ctid = ANY(ARRAY(
            SELECT old.ctid FROM {table} AS old WHERE {condition} LIMIT {limit:d}
            FOR UPDATE SKIP LOCKED
        ))"""  # noqa: S608
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        rows = cursor.rowcount
    return Freed(rows, rows * estimate_row_bytes(table) if rows else 0)


def list_leaves(table: str) -> list[str]:
    """Return the partitions of a table, or the table itself if it has none."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = %s::regclass "
            "ORDER BY 1",
            [table],
        )
        return [name for (name,) in cursor.fetchall()] or [table]


def measure_size(table: str) -> Freed:
    """Return the estimated rows of a table with its partitions, and its bytes with indexes."""
    with connection.cursor() as cursor:
        return sum((_size(cursor, leaf) for leaf in list_leaves(table)), Freed())


def estimate_row_bytes(table: str) -> int:
    """Return the estimated bytes of a row with its share of the indexes; 0 before ANALYZE."""
    with connection.cursor() as cursor:
        cursor.execute(BYTES_PER_ROW, [list_leaves(table)])
        return int(cursor.fetchone()[0] or 0)


def _set_lock_timeout(cursor: Any) -> None:
    cursor.execute("SELECT set_config('lock_timeout', %s, true)", [f"{LOCK_MS}ms"])


def _size(cursor: Any, table: str) -> Freed:
    """Return the estimated rows of a table, and its bytes with indexes."""
    cursor.execute(SIZE, [table])
    rows, size = cursor.fetchone()
    if rows <= 0 and size <= COUNTED_BYTES_MAX:
        # It was not analyzed yet, and is small enough to count.
        cursor.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table)))
        rows = cursor.fetchone()[0]
    return Freed(max(0, int(rows)), int(size))
