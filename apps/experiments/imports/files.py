"""Read rows of CSV and Parquet files in chunks, from any row on."""

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
# Longer fields are refused, so that a file of one endless line is not read whole.
FIELD_MAX = 100_000

# A row's number, counted from 1 without the header, with its fields by name or why it is malformed.
Row = tuple[int, dict[str, Any] | str]


class BadFile(Invalid):
    """The file cannot be read, from the start or from some row on."""

    def __init__(self, text: str) -> None:
        super().__init__(text, field="file")


def format_of(path: Path) -> str:
    """Return the format by the file's first bytes. Raises BadFile for an empty file."""
    with path.open("rb") as file:
        start = file.read(4)
    if not start:
        raise BadFile("the file is empty")
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
    # Spreadsheets write a byte-order mark; it is not part of the first name.
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
            raise BadFile(f"not valid UTF-8 after row {number:,} ({error.reason})") from None
        except csv.Error as error:
            raise BadFile(f"not valid CSV after row {number:,}: {error}") from None


def _delimiter(file: TextIO) -> str:
    """Return the delimiter of the header: the most frequent of comma, semicolon and tab."""
    header = file.readline(FIELD_MAX)
    file.seek(0)
    return max(DELIMITERS, key=header.count)


def _fields(header: Sequence[str], row: list[str]) -> dict[str, Any] | str:
    if len(row) != len(header):
        return f"the row does not have the header's {len(header)} fields"
    return dict(zip(header, row, strict=True))


def _check_columns(header: Sequence[str]) -> None:
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise BadFile(
            f"missing columns: {', '.join(missing)} "
            f"(the file has: {', '.join(header)[:300] or 'none'})"
        )
    repeated = sorted({name for name in (*COLUMNS, *OPTIONAL) if list(header).count(name) > 1})
    if repeated:
        raise BadFile(f"duplicate columns: {', '.join(repeated)}")


# --- Parquet -------------------------------------------------------------------------------------


def _parquet(path: Path, start: int, size: int) -> Iterator[list[Row]]:
    # Imported here: it takes a second, and few processes ever read Parquet.
    import duckdb

    number = start
    with duckdb.connect(config={"threads": 1}) as engine:
        try:
            columns = _columns_of(engine, path)
            selection, names = ", ".join(columns.values()), list(columns)
            while True:
                engine.execute(
                    f"SELECT {selection} FROM read_parquet(?) LIMIT {size} OFFSET {number}",  # noqa: S608
                    [str(path)],
                )
                rows = [dict(zip(names, row, strict=True)) for row in engine.fetchall()]
                if not rows:
                    return
                yield list(enumerate(rows, number + 1))
                number += len(rows)
        except duckdb.Error as error:
            message = str(error).splitlines()[0][:300].replace(str(path), "the file")
            raise BadFile(f"not valid Parquet after row {number:,}: {message}") from None


def _columns_of(engine: duckdb.DuckDBPyConnection, path: Path) -> dict[str, str]:
    """Return SQL expressions by column; timestamps become milliseconds. Raises BadFile."""
    engine.execute("DESCRIBE SELECT * FROM read_parquet(?)", [str(path)])
    types = {str(row[0]).lower(): str(row[1]) for row in engine.fetchall()}
    _check_columns(list(types))
    at = types["occurred_at"]
    if at.startswith("TIMESTAMP") and at != "TIMESTAMP WITH TIME ZONE":
        raise BadFile("occurred_at has no time zone; store it as UTC timestamps")
    expressions = {name: f'"{name}"' for name in (*COLUMNS, *OPTIONAL) if name in types}
    if at == "TIMESTAMP WITH TIME ZONE":
        expressions["occurred_at"] = "epoch_ms(occurred_at)"
    if types["value"].startswith("DECIMAL"):
        expressions["value"] = "value::DOUBLE"
    return expressions
