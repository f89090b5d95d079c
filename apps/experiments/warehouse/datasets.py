"""Validates the datasets of a warehouse before any computation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from apps.experiments.unit_query import Scan
from apps.experiments.unit_values import sent_as
from apps.experiments.warehouse.units import Expr, Tables, as_number, scanned
from apps.lib.errors import Unavailable
from contract.messages import OUTCOME_VALUE_MAX as VALUE_MAX

Kind = tuple[str, Callable[[Any], bool]]
TEXT: Kind = ("text", lambda kind: kind.is_string())
WHOLE: Kind = ("a whole number", lambda kind: kind.is_integer())
NUMBER: Kind = ("a number", lambda kind: kind.is_numeric())
TRUTH: Kind = ("a boolean", lambda kind: kind.is_boolean())
INSTANT: Kind = (
    "a timestamp with a time zone",
    lambda kind: kind.is_timestamp() and kind.timezone is not None,
)
COLUMNS: dict[str, dict[str, Kind]] = {
    "exposures": {
        "experiment": TEXT, "unit": TEXT, "variant": TEXT, "at": INSTANT, "crossed_over": TRUTH,
        "bucket": WHOLE, "tenant": TEXT,
    },
    "outcomes": {
        "event_id": TEXT, "unit": TEXT, "metric": TEXT, "value": NUMBER, "occurred_at": INSTANT,
    },
    "measured": {
        "experiment": TEXT, "unit": TEXT, "requests": WHOLE, "errors": WHOLE, "cache_hits": WHOLE,
        "latency_us": WHOLE,
    },
}  # fmt: skip


# Ibis does not report the time zone of these engines' timestamps; it sets the session to UTC.
NO_ZONES = {"pyspark"}


def check_columns(dataset: str, table: Expr, engine: str) -> None:
    """Raise Unavailable if a column is missing or has the wrong type."""
    kinds = dict(table.schema().items())
    if engine in NO_ZONES:
        kinds = {name: _in_utc(kind) for name, kind in kinds.items()}
    for column, (expected, is_valid) in COLUMNS[dataset].items():
        if column not in kinds:
            raise Unavailable(f"The warehouse dataset '{dataset}' has no column '{column}'.")
        if not is_valid(kinds[column]):
            raise Unavailable(
                f"The warehouse dataset '{dataset}': column '{column}' must be {expected}, "
                f"not {kinds[column]}."
            )


def _in_utc(kind: Any) -> Any:
    return kind.copy(timezone="UTC") if kind.is_timestamp() else kind


def check_rows(scan: Scan, tables: Tables, fetch: Callable[[Expr], list[dict[str, Any]]]) -> None:
    """Raise Unavailable for rows that would give wrong counts.

    These are a unit with several rows, a NULL in a required column, and an outcome that is not a
    finite number or exceeds the limit of the data plane.
    """
    name = scan.experiment.name
    for dataset, table in tables.named().items():
        if dataset == "outcomes":
            names = sorted({sent_as(column).name for column in scanned(scan)})
            rows = table.filter(table.metric.isin(names))
            aggregates = {"wrong": _count(~(rows.value.cast("float64").abs() <= VALUE_MAX))}
        else:
            rows = table.filter(table.experiment == name)
            aggregates = {"units": rows.unit.nunique()}
        required = [column for column in COLUMNS[dataset] if column != "tenant"]
        aggregates |= {f"null_{column}": _count(rows[column].isnull()) for column in required}
        (row,) = fetch(rows.aggregate(n=rows.count(), **aggregates))
        for column in required:
            if row[f"null_{column}"]:
                raise Unavailable(
                    f"The warehouse dataset '{dataset}' has {row[f'null_{column}']:,} rows of "
                    f"{name} without a value in '{column}'."
                )
        if row.get("wrong"):
            raise Unavailable(
                f"The warehouse dataset 'outcomes' has {row['wrong']:,} values of {name} that are "
                f"not finite numbers of at most {VALUE_MAX:g}."
            )
        if row.get("units", row["n"]) != row["n"]:
            raise Unavailable(
                f"The warehouse dataset '{dataset}' has {row['n']:,} rows of {name} for "
                f"{row['units']:,} units; each unit must have one row. Check for overlapping files."
            )


def _count(condition: Expr) -> Expr:
    return as_number(condition).sum().fill_null(0)
