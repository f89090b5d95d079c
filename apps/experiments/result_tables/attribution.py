"""The table of outcomes that count and that do not count, per metric, and its notices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# A notice is shown from this share of a metric's outcomes that do not count.
NOTICED = 0.05
# Outcomes dated at most this long before the exposure suggest a slow clock, in seconds. Older ones
# are more likely earlier events of the unit.
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
    """Return the table of a result; None for results of older releases, which have no counts."""
    counted = result.get("attribution")
    if not counted or not counted["metrics"]:
        return None
    rows = tuple(AttributionRow(name, **counts) for name, counts in counted["metrics"].items())
    return AttributionTable(rows, counted["skew_s"], counted["since"])


def attribution_notices(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield tone and text for each metric with a notable share of outcomes that do not count."""
    table = attribution_table(result)
    for row in table.rows if table else ():
        if row.before and row.before >= NOTICED * row.of_exposed:
            yield _before(row, table.skew_s if table else 0)
        if row.after_window and row.after_window >= NOTICED * row.of_exposed:
            text = f"{_share(row, row.after_window)} came after the metric's window. They do not"
            yield ("busy" if row.in_time else "warn"), f"{text} count."
        total = row.of_exposed + row.unknown_units
        if row.unknown_units and row.unknown_units >= NOTICED * total:
            yield _unknown(row, total)


def _before(row: AttributionRow, skew_s: int) -> tuple[str, str]:
    lead_s = row.before_mean_s or 0
    text = f"{_share(row, row.before)} are dated before their unit's exposure, by {lead_s:,} s on "
    text += f"average. They do not count; outcomes up to {skew_s:,} s before the exposure do."
    if lead_s > CLOCK_S and row.in_time:
        return "busy", text
    text += " Check the sender's clock. Send the request_id of the prediction with each outcome"
    text += ", or increase INTERLOCK_OUTCOME_CLOCK_SKEW_S."
    return ("warn" if row.in_time else "bad"), text


def _unknown(row: AttributionRow, total: int) -> tuple[str, str]:
    if row.of_exposed:
        text = f"{row.metric}: {row.unknown_units:,} of {total:,} outcomes are of units without "
        return "busy", f"{text}exposure to this experiment. They do not count."
    text = f"{row.metric}: all {total:,} outcomes are of units without exposure to this "
    text += "experiment. None counts. Check that unit_id is the unit of the prediction requests."
    return "warn", text


def _share(row: AttributionRow, count: int) -> str:
    if count == row.of_exposed:
        return f"{row.metric}: all outcomes of exposed units ({count:,})"
    return f"{row.metric}: {count:,} of {row.of_exposed:,} outcomes of exposed units"
