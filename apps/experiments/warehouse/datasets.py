"""What a dataset must look like before anything is computed from it: refused, never guessed at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from apps.experiments.warehouse.units import Expr, Tables
from apps.lib.errors import Unavailable

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


def check_columns(dataset: str, table: Expr) -> None:
    """Raise Unavailable, naming it, when a column is missing or of another type."""
    kinds = dict(table.schema().items())
    for column, (told, fits) in COLUMNS[dataset].items():
        if column not in kinds:
            raise Unavailable(f"The warehouse's {dataset} have no column {column}.")
        if not fits(kinds[column]):
            raise Unavailable(
                f"The warehouse's {dataset}: {column} must be {told}, and is {kinds[column]}."
            )


def check_rows(
    experiment: str, tables: Tables, ask: Callable[[Expr], list[dict[str, Any]]]
) -> None:
    """Raise Unavailable when a unit has several rows, or an outcome no `event_id`.

    A unit that is there twice would count twice, and its sums would double without a word.
    """
    for dataset in ("exposures", "measured"):
        table = getattr(tables, dataset)
        if table is None:
            continue
        rows = table.filter(table.experiment == experiment)
        (found,) = ask(rows.aggregate(n=rows.count(), units=rows.unit.nunique()))
        if found["n"] != found["units"]:
            raise Unavailable(
                f"The warehouse's {dataset} of {experiment} have {found['n']:,} rows of "
                f"{found['units']:,} units; each unit must have one. Do files overlap?"
            )
    nameless = tables.outcomes.filter(tables.outcomes.event_id.isnull())
    (found,) = ask(nameless.aggregate(n=nameless.count()))
    if found["n"]:
        raise Unavailable(f"The warehouse's outcomes have {found['n']:,} rows without an event_id.")
