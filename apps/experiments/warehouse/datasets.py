"""What a dataset must look like before anything is computed from it: refused, never guessed at."""

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
    "an instant with a time zone",
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


# Of these engines Ibis does not say which instants have a zone; it sets the session's to UTC.
NO_ZONES = {"pyspark"}


def check_columns(dataset: str, table: Expr, engine: str) -> None:
    """Raise Unavailable, naming it, when a column is missing or of another type."""
    kinds = dict(table.schema().items())
    if engine in NO_ZONES:
        kinds = {name: _in_utc(kind) for name, kind in kinds.items()}
    for column, (told, fits) in COLUMNS[dataset].items():
        if column not in kinds:
            raise Unavailable(f"The warehouse's {dataset} have no column {column}.")
        if not fits(kinds[column]):
            raise Unavailable(
                f"The warehouse's {dataset}: {column} must be {told}, and is {kinds[column]}."
            )


def _in_utc(kind: Any) -> Any:
    return kind.copy(timezone="UTC") if kind.is_timestamp() else kind


def check_rows(scan: Scan, tables: Tables, ask: Callable[[Expr], list[dict[str, Any]]]) -> None:
    """Raise Unavailable for rows that would count falsely without a word.

    That is a unit with several rows, which would count as often; a NULL where a value is needed;
    and an outcome that is no finite number, or beyond what a data plane takes.
    """
    name = scan.experiment.name
    for dataset, table in tables.named().items():
        if dataset == "outcomes":
            names = sorted({sent_as(column).name for column in scanned(scan)})
            rows = table.filter(table.metric.isin(names))
            asked = {"wrong": _count(~(rows.value.cast("float64").abs() <= VALUE_MAX))}
        else:
            rows = table.filter(table.experiment == name)
            asked = {"units": rows.unit.nunique()}
        needed = [column for column in COLUMNS[dataset] if column != "tenant"]
        asked |= {f"null_{column}": _count(rows[column].isnull()) for column in needed}
        (found,) = ask(rows.aggregate(n=rows.count(), **asked))
        for column in needed:
            if found[f"null_{column}"]:
                raise Unavailable(
                    f"The warehouse's {dataset} of {name} have {found[f'null_{column}']:,} rows "
                    f"without {column}."
                )
        if found.get("wrong"):
            raise Unavailable(
                f"The warehouse's outcomes of {name} have {found['wrong']:,} values that are no "
                f"finite number, or beyond {VALUE_MAX:g}."
            )
        if found.get("units", found["n"]) != found["n"]:
            raise Unavailable(
                f"The warehouse's {dataset} of {name} have {found['n']:,} rows of "
                f"{found['units']:,} units; each unit must have one. Do files overlap?"
            )


def _count(condition: Expr) -> Expr:
    return as_number(condition).sum().fill_null(0)
