"""Many rows into a table at once: COPY into a table of this session, then one statement from there.

COPY knows no conflicts, so rows are staged first. The staging table is the session's own, never
written to the log, and emptied by the end of each transaction.
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
    """Yield a cursor that finds `rows`, in their order, in the table `name`.

    `types` are the columns with their types; whole numbers take int8, since a smaller type cuts off
    what it cannot hold without a word. Runs in the caller's transaction. Raises
    django.db.DataError for a value that the type cannot hold.
    """
    columns = ", ".join(f"{column} {kind}" for column, kind in types.items())
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TEMP TABLE IF NOT EXISTS {name} ({columns}) ON COMMIT DELETE ROWS")
        # Another call in this transaction left its rows. Deleted ones would still be gone through.
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
