"""CSV and Parquet files into rows, a bounded number at a time, from any row on."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from apps.experiments.imports.rows import COLUMNS, OPTIONAL
from apps.lib.errors import Invalid

if TYPE_CHECKING:
    import duckdb

CSV, PARQUET = "csv", "parquet"
FORMATS = (CSV, PARQUET)
DELIMITERS = ",;\t"
MAGIC = b"PAR1"
CHUNK = 5_000
# A field beyond it is none of ours; a file of one endless line is not read whole.
FIELD_MAX = 100_000

# A row's number, counted from 1 without the header, and its fields by name, or why it has none.
Row = tuple[int, dict[str, Any] | str]


class BadFile(Invalid):
    """The file as a whole, or from some row on, cannot be read."""


def format_of(path: Path) -> str:
    """Return the format by what the file holds. Raises BadFile for an empty one."""
    with path.open("rb") as file:
        start = file.read(4)
    if not start:
        raise BadFile("file: it is empty")
    return PARQUET if start == MAGIC else CSV


def check_file(path: Path, kind: str) -> None:
    """Raise BadFile when the file has no header, or lacks a column."""
    for _ in read_chunks(path, kind, 0, size=1):
        return


def read_chunks(path: Path, kind: str, start: int, size: int = CHUNK) -> Iterator[list[Row]]:
    """Yield the rows after the first `start` ones, `size` at a time. Raises BadFile."""
    yield from (_parquet if kind == PARQUET else _csv)(path, start, size)


# --- CSV -----------------------------------------------------------------------------------------


def _csv(path: Path, start: int, size: int) -> Iterator[list[Row]]:
    csv.field_size_limit(FIELD_MAX)
    number = start
    # A byte-order mark, as spreadsheets write it, is no part of the first name.
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            reader = csv.reader(file, delimiter=_delimiter(file), strict=True)
            header = [name.strip().lower() for name in next(reader, [])]
            _check_columns(header)
            rows = islice(reader, start, None)
            while chunk := [_fields(header, row) for row in islice(rows, size)]:
                yield list(enumerate(chunk, number + 1))
                number += len(chunk)
        except UnicodeDecodeError as error:
            raise BadFile(f"file: it is not UTF-8 after row {number:,} ({error.reason})") from None
        except csv.Error as error:
            raise BadFile(f"file: no CSV after row {number:,}: {error}") from None


def _delimiter(file: TextIO) -> str:
    """Return what divides the header's names: the one of commas, semicolons, tabs that is there."""
    header = file.readline(FIELD_MAX)
    file.seek(0)
    return max(DELIMITERS, key=header.count)


def _fields(header: Sequence[str], row: list[str]) -> dict[str, Any] | str:
    if len(row) != len(header):
        return f"it does not have the header's {len(header)} fields"
    return dict(zip(header, row, strict=True))


def _check_columns(found: Sequence[str]) -> None:
    missing = [name for name in COLUMNS if name not in found]
    if missing:
        raise BadFile(
            f"file: columns are missing: {', '.join(missing)} "
            f"(found: {', '.join(found)[:300] or 'none'})"
        )
    twice = sorted({name for name in (*COLUMNS, *OPTIONAL) if list(found).count(name) > 1})
    if twice:
        raise BadFile(f"file: columns are there twice: {', '.join(twice)}")


# --- Parquet -------------------------------------------------------------------------------------


def _parquet(path: Path, start: int, size: int) -> Iterator[list[Row]]:
    # Imported here: it takes a second, and few who start ever read such a file.
    import duckdb

    number = start
    with duckdb.connect(config={"threads": 1}) as engine:
        try:
            columns = _columns_of(engine, path)
            asked, names = ", ".join(columns.values()), list(columns)
            while True:
                engine.execute(
                    f"SELECT {asked} FROM read_parquet(?) LIMIT {size} OFFSET {number}",  # noqa: S608
                    [str(path)],
                )
                found = [dict(zip(names, row, strict=True)) for row in engine.fetchall()]
                if not found:
                    return
                yield list(enumerate(found, number + 1))
                number += len(found)
        except duckdb.Error as error:
            told = str(error).splitlines()[0][:300].replace(str(path), "it")
            raise BadFile(f"file: no Parquet after row {number:,}: {told}") from None


def _columns_of(engine: duckdb.DuckDBPyConnection, path: Path) -> dict[str, str]:
    """Return what to select by name, so that instants come as milliseconds. Raises BadFile."""
    engine.execute("DESCRIBE SELECT * FROM read_parquet(?)", [str(path)])
    types = {str(row[0]).lower(): str(row[1]) for row in engine.fetchall()}
    _check_columns(list(types))
    at = types["occurred_at"]
    if at.startswith("TIMESTAMP") and at != "TIMESTAMP WITH TIME ZONE":
        raise BadFile("file: occurred_at has no time zone; write it as instants in UTC")
    told = {name: f'"{name}"' for name in (*COLUMNS, *OPTIONAL) if name in types}
    if at == "TIMESTAMP WITH TIME ZONE":
        told["occurred_at"] = "epoch_ms(occurred_at)"
    if types["value"].startswith("DECIMAL"):
        told["value"] = "value::DOUBLE"
    return told
