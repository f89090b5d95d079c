"""Tables that are divided by time: a partition for each day or month, and one for what fits none.

Partitions are made ahead, and dropped whole: that costs the same for a thousand rows as for a
billion. Each step is one transaction that waits briefly for its locks, so that it never holds up
those who write, and may be killed at any instant. Rows whose partition is not there yet, since
nobody made it or their clock is wrong, are in the partition `TABLE_rest`.
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

# Who writes waits behind us while we wait.
LOCK_MS = 2_000
# Partitions that are there before their time comes.
AHEAD = {"day": 3, "month": 2}

LEAVES = """
    SELECT child.relname, pg_get_expr(child.relpartbound, child.oid)
    FROM pg_inherits JOIN pg_class AS child ON child.oid = inhrelid
    WHERE inhparent = %s::regclass ORDER BY child.relname
"""
SIZE = "SELECT reltuples, pg_total_relation_size(oid) FROM pg_class WHERE oid = %s::regclass"
A_ROW = """
    SELECT sum(pg_total_relation_size(oid)) / nullif(sum(greatest(reltuples, 0)), 0)
    FROM pg_class WHERE oid = ANY(%s::regclass[])
"""
COUNTED_BYTES_MAX = 64 * 1024**2
UPPER = re.compile(r"TO \('([^']+)'\)")


@dataclass(frozen=True)
class Divided:
    """A table that is divided by `column` into spans."""

    table: str
    column: str
    span: Span

    @property
    def rest(self) -> str:
        return f"{self.table}_rest"


@dataclass(frozen=True)
class Partition:
    """A partition of which all rows are before `until`."""

    name: str
    until: datetime


@dataclass(frozen=True)
class Freed:
    rows: int = 0
    bytes: int = 0

    def __add__(self, other: Freed) -> Freed:
        return Freed(self.rows + other.rows, self.bytes + other.bytes)


def start_of(at: datetime, span: Span) -> datetime:
    """Return the beginning of the day or month of `at`, in UTC."""
    day = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return day if span == "day" else day.replace(day=1)


def end_of(at: datetime, span: Span) -> datetime:
    """Return the beginning of the next day or month."""
    start = start_of(at, span)
    # 32 days lead from the first of any month into the next one.
    return start_of(start + timedelta(days=1 if span == "day" else 32), span)


def partitions(divided: Divided) -> list[Partition]:
    """Return the partitions but the rest, the oldest first."""
    with connection.cursor() as cursor:
        cursor.execute(LEAVES, [divided.table])
        rows = cursor.fetchall()
    found = [
        Partition(name, datetime.fromisoformat(upper[1]).astimezone(UTC))
        for name, bound in rows
        if (upper := UPPER.search(bound))
    ]
    return sorted(found, key=lambda partition: partition.until)


def make_ahead(divided: Divided, now: datetime) -> int:
    """Make the partitions of now and the time ahead that are missing; return how many."""
    until = max((each.until for each in partitions(divided)), default=start_of(now, divided.span))
    made = 0
    for start in _starts(now, divided.span):
        if start >= until:
            _make(divided, start)
            made += 1
    return made


def _starts(now: datetime, span: Span) -> Iterator[datetime]:
    start = start_of(now, span)
    for _ in range(AHEAD[span] + 1):
        yield start
        start = end_of(start, span)


@transaction.atomic
def _make(divided: Divided, start: datetime) -> None:
    """Make one partition, with what came for it before it was there."""
    end = end_of(start, divided.span)
    with connection.cursor() as cursor:
        _wait_briefly(cursor)
        for statement in (
            "CREATE TABLE {new} (LIKE {table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)",
            "WITH moved AS (DELETE FROM {rest} WHERE {column} >= {start} AND {column} < {end} "
            "RETURNING *) INSERT INTO {new} SELECT * FROM moved",
            "ALTER TABLE {table} ATTACH PARTITION {new} FOR VALUES FROM ({start}) TO ({end})",
        ):
            cursor.execute(
                sql.SQL(statement).format(
                    new=sql.Identifier(f"{divided.table}_{start:%Y%m%d}"),
                    table=sql.Identifier(divided.table),
                    rest=sql.Identifier(divided.rest),
                    column=sql.Identifier(divided.column),
                    start=sql.Literal(start.isoformat()),
                    end=sql.Literal(end.isoformat()),
                )
            )


@transaction.atomic
def drop_partition(divided: Divided, partition: Partition, survives: str = "") -> Freed:
    """Drop a partition, but for rows of which the SQL condition `survives` holds: those are kept in
    the rest. The condition names a row `old`.
    """
    name = sql.Identifier(partition.name)
    table = sql.Identifier(divided.table)
    with connection.cursor() as cursor:
        _wait_briefly(cursor)
        freed = _size(cursor, partition.name)
        kept = 0
        if survives:
            # Before it leaves: the condition may look at the table as a whole.
            kept = _set_aside(cursor, name, survives)
        cursor.execute(sql.SQL("ALTER TABLE {} DETACH PARTITION {}").format(table, name))
        if survives:
            cursor.execute(sql.SQL("INSERT INTO {} SELECT * FROM set_aside").format(table))
            cursor.execute("DROP TABLE set_aside")
        cursor.execute(sql.SQL("DROP TABLE {}").format(name))
    return Freed(max(0, freed.rows - kept), freed.bytes)


def _set_aside(cursor: Any, name: sql.Identifier, survives: str) -> int:
    start = "CREATE TEMPORARY TABLE set_aside ON COMMIT DROP AS SELECT old.* FROM {} AS old WHERE "
    cursor.execute(sql.SQL(start).format(name) + sql.SQL(survives))
    return int(cursor.rowcount)


@transaction.atomic
def delete_batch(table: str, condition: str, parameters: Sequence[Any], limit: int) -> Freed:
    """Delete up to `limit` rows of which the SQL condition holds, in a transaction of its own.

    The table itself is no partitioned one; the condition names a row `old`. Bytes are estimated: a
    row's share of the table, which later rows fill.
    """
    # The names are ours.
    statement = f"""
        DELETE FROM {table} WHERE ctid = ANY(ARRAY(
            SELECT old.ctid FROM {table} AS old WHERE {condition} LIMIT {limit:d}
            FOR UPDATE SKIP LOCKED
        ))"""  # noqa: S608
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        rows = cursor.rowcount
    return Freed(rows, rows * bytes_a_row(table) if rows else 0)


def leaves(table: str) -> list[str]:
    """Return the partitions of a table, or the table itself without any."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = %s::regclass "
            "ORDER BY 1",
            [table],
        )
        return [name for (name,) in cursor.fetchall()] or [table]


def size_of(table: str) -> Freed:
    """Return about how many rows a table has with its partitions, and its bytes with indexes."""
    with connection.cursor() as cursor:
        return sum((_size(cursor, leaf) for leaf in leaves(table)), Freed())


def bytes_a_row(table: str) -> int:
    """Return about what a row takes, with its share of the indexes; 0 where nobody has counted."""
    with connection.cursor() as cursor:
        cursor.execute(A_ROW, [leaves(table)])
        return int(cursor.fetchone()[0] or 0)


def _wait_briefly(cursor: Any) -> None:
    cursor.execute("SELECT set_config('lock_timeout', %s, true)", [f"{LOCK_MS}ms"])


def _size(cursor: Any, table: str) -> Freed:
    """Return about how many rows a table has, and its bytes with indexes."""
    cursor.execute(SIZE, [table])
    rows, size = cursor.fetchone()
    if rows <= 0 and size <= COUNTED_BYTES_MAX:
        # Nobody has looked at it yet.
        cursor.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table)))
        rows = cursor.fetchone()[0]
    return Freed(max(0, int(rows)), int(size))
