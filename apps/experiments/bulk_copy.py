"""Insert many rows at once: COPY into a temporary table, then one statement that reads it.

COPY has no ON CONFLICT, so rows are staged first. The temporary table belongs to the session, is
not written to the WAL, and is emptied at the end of each transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django.db import connection

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def staged(name: str, types: Mapping[str, str], rows: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """Yield a cursor while `rows` are in the temporary table `name`, in their order.

    `types` maps columns to types. Use int8 for integers: a smaller type truncates silently. Runs in
    the caller's transaction. Raises django.db.DataError for a value out of its type's range.
    """
    columns = ", ".join(f"{column} {kind}" for column, kind in types.items())
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TEMP TABLE IF NOT EXISTS {name} ({columns}) ON COMMIT DELETE ROWS")
        # Rows of an earlier call in this transaction; TRUNCATE, as deleted rows would be scanned.
        cursor.execute(f"SELECT EXISTS (SELECT FROM {name})")  # noqa: S608 (a constant of ours)
        if cursor.fetchone()[0]:
            cursor.execute(f"TRUNCATE {name}")
        with (
            connection.wrap_database_errors,
            cursor.copy(f"COPY {name} FROM STDIN (FORMAT binary)") as copy,
        ):
            copy.set_types(list(types.values()))
            for row in rows:
                copy.write_row(row)
        yield cursor
