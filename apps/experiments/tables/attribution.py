"""Which outcomes of each metric count, and which do not: a table, and what must be said of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# From this share of a metric's outcomes on a reader is told of those that do not count.
NOTICED = 0.05
# Outcomes dated so shortly before the exposure look like a clock that is behind, older ones like
# what the unit did before.
CLOCK_S = 3_600


@dataclass(frozen=True)
class AttributionRow:
    """One metric's outcomes; see `apps.experiments.attribution.Attribution`."""

    metric: str
    in_time: int
    before: int
    before_mean_s: int | None
    after_window: int
    unknown_units: int

    @property
    def of_exposed(self) -> int:
        return self.in_time + self.before + self.after_window


@dataclass(frozen=True)
class AttributionTable:
    rows: tuple[AttributionRow, ...]
    skew_s: int
    since: str


def attribution_table(result: Mapping[str, Any]) -> AttributionTable | None:
    """Return the table of a result; None for one of before, which did not count."""
    counted = result.get("attribution")
    if not counted or not counted["metrics"]:
        return None
    rows = tuple(AttributionRow(name, **counts) for name, counts in counted["metrics"].items())
    return AttributionTable(rows, counted["skew_s"], counted["since"])


def attribution_notices(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield tone and text about metrics of whose outcomes a noticeable share does not count."""
    table = attribution_table(result)
    for row in table.rows if table else ():
        if row.before and row.before >= NOTICED * row.of_exposed:
            yield _before(row, table.skew_s if table else 0)
        if row.after_window and row.after_window >= NOTICED * row.of_exposed:
            text = f"{_share(row, row.after_window)} came after the metric's window and do not"
            yield ("busy" if row.in_time else "warn"), f"{text} count."
        everything = row.of_exposed + row.unknown_units
        if row.unknown_units and row.unknown_units >= NOTICED * everything:
            yield _unknown(row, everything)


def _before(row: AttributionRow, skew_s: int) -> tuple[str, str]:
    lead_s = row.before_mean_s or 0
    text = f"{_share(row, row.before)} are dated before their unit's exposure, by {lead_s:,} s on "
    text += f"average, and do not count; up to {skew_s:,} s before it they would."
    if lead_s > CLOCK_S and row.in_time:
        return "busy", text
    text += " Is the clock of their sender behind? Send each with the request_id of its prediction"
    text += ", or raise INTERLOCK_OUTCOME_CLOCK_SKEW_S."
    return ("warn" if row.in_time else "bad"), text


def _unknown(row: AttributionRow, everything: int) -> tuple[str, str]:
    if row.of_exposed:
        text = f"{row.metric}: {row.unknown_units:,} of {everything:,} outcomes are of units that "
        return "busy", f"{text}this experiment has not exposed; they do not count."
    text = f"{row.metric}: none of its {everything:,} outcomes is of a unit that this experiment "
    text += "has exposed, so none counts. Is unit_id what predictions are asked with?"
    return "warn", text


def _share(row: AttributionRow, count: int) -> str:
    if count == row.of_exposed:
        return f"{row.metric}: all outcomes of exposed units ({count:,})"
    return f"{row.metric}: {count:,} of {row.of_exposed:,} outcomes of exposed units"
