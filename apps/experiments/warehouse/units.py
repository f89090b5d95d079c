"""The units' values as one Ibis expression, the same that `apps.experiments.unit_values` folds.

Nothing here is specific to an engine: Ibis translates it for DuckDB, ClickHouse, Spark, Trino or
BigQuery.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ibis
from django.conf import settings

from apps.experiments.columns import Column, columns_of
from apps.experiments.models import Metric, MetricUse
from apps.experiments.unit_query import Scan
from apps.experiments.unit_values import rule_of, sent_as

# Ibis expressions have no types that mypy could check.
Expr = Any

# The columns of a unit besides its values.
KEPT = ("variant", "at", "bucket", "crossed_over")
COUNTS = ("requests", "errors", "cache_hits", "latency_us")


@dataclass(frozen=True)
class Tables:
    """The datasets: exposures, outcomes and, optionally, the data planes' measurements."""

    exposures: Expr
    outcomes: Expr
    measured: Expr | None = None

    def named(self) -> dict[str, Expr]:
        """Return the available datasets by name."""
        every = {"exposures": self.exposures, "outcomes": self.outcomes, "measured": self.measured}
        return {name: table for name, table in every.items() if table is not None}


def as_number(condition: Expr) -> Expr:
    """Return 1 where the condition holds, else 0, which every engine can sum."""
    return condition.ifelse(1, 0).cast("int64")


def scanned(scan: Scan) -> list[Column]:
    """Return the columns of the scan's units, in order."""
    uses: list[MetricUse] = [metric.use for metric in scan.metrics]
    return columns_of(scan.experiment, uses)


def units_of(scan: Scan, tables: Tables) -> Expr:
    """Return the experiment's units: variant, time of exposure, dimensions, and `v1`, `v2`, …"""
    columns = scanned(scan)
    name = scan.experiment.name
    units = tables.exposures.filter(tables.exposures.experiment == name)
    summed = _summed(units, tables.outcomes, columns, scan.experiment.covariate_s)
    result = units.left_join(summed, "unit").drop("unit_right")
    measured_columns = [
        column for column in columns if column.metric.source != Metric.Source.OUTCOMES
    ]
    if measured_columns and tables.measured is not None:
        measured = tables.measured.filter(tables.measured.experiment == name)
        # A unit without a measurement must get NULL; ClickHouse does so for nullable columns only.
        counts = measured.select(
            "unit", **{each: measured[each].cast("float64") for each in COUNTS}
        )
        result = result.left_join(counts, "unit").drop("unit_right")
    kept_columns = [*KEPT, *(each for each in scan.experiment.dimensions if each in result.columns)]
    named = {}
    for place, column in enumerate(columns, 1):
        if column.metric.source != Metric.Source.OUTCOMES:
            is_known = tables.measured is not None
            value = _measured(result, column) if is_known else ibis.null("float64")
            named[f"v{place}"] = value
    if named:
        result = result.mutate(**named)
    values = [f"v{place}" for place in range(1, len(columns) + 1)]
    return result.select(*dict.fromkeys(kept_columns), *values)


def _summed(units: Expr, outcomes: Expr, columns: Sequence[Column], covariate_s: int) -> Expr:
    """Return `v1`, … of the columns from outcomes, by unit; units without outcomes are omitted."""
    names = sorted({sent_as(column).name for column in columns})
    once = outcomes.filter(outcomes.metric.isin(names))
    once = once.mutate(value=once.value.cast("float64"))
    # A duplicate event counts once: the earliest one.
    order = ibis.row_number().over(
        ibis.window(group_by="event_id", order_by=[once.occurred_at, once.value, once.unit])
    )
    once = once.mutate(_copy=order)
    once = once.filter(once._copy == 0).drop("_copy")
    exposures = units.select("unit", "at")
    rows = once.inner_join(exposures, "unit")
    skew_s = settings.OUTCOME_CLOCK_SKEW_S
    rows = rows.filter(rows.occurred_at >= rows.at - ibis.interval(seconds=covariate_s + skew_s))
    # See `values.COUNTS_FROM`.
    rows = rows.mutate(_before=rows.occurred_at < rows.at - ibis.interval(seconds=skew_s))
    # The first outcome of each metric and unit, before the exposure and after it.
    first = ibis.row_number().over(
        ibis.window(
            group_by=["unit", "metric", "_before"], order_by=[rows.occurred_at, rows.event_id]
        )
    )
    rows = rows.mutate(_rank=first)
    values = {
        f"v{place}": _aggregate(rows, column)
        for place, column in enumerate(columns, 1)
        if column.metric.source == Metric.Source.OUTCOMES
    }
    return rows.group_by("unit").aggregate(**values)


def _aggregate(rows: Expr, column: Column) -> Expr:
    metric = column.metric
    where = (rows.metric == sent_as(column).name) & (rows._before == column.is_before)
    if not column.is_before and metric.window_s is not None:
        where &= rows.occurred_at < rows.at + ibis.interval(seconds=metric.window_s)
    rule = rule_of(metric)
    if rule == Metric.PerUnit.FIRST:
        where &= rows._rank == 0
    # Not the aggregate's own condition: ClickHouse returns 0 if no row matches it.
    value = where.ifelse(rows.value, ibis.null("float64"))
    return {
        Metric.PerUnit.FIRST: value.max,
        Metric.PerUnit.MEAN: value.mean,
        Metric.PerUnit.SUM: value.sum,
        Metric.PerUnit.MAX: value.max,
    }[rule]()


def _measured(units: Expr, column: Column) -> Expr:
    computed = units.requests - units.errors - units.cache_hits
    total, count = {
        Metric.Source.LATENCY: (units.latency_us / 1000.0, computed),
        Metric.Source.ERRORS: (units.errors, units.requests),
        Metric.Source.CACHE: (units.cache_hits, units.requests),
    }[Metric.Source(column.metric.source)]
    if column.metric.kind == Metric.Kind.RATIO:
        return (count if column.is_denominator else total).cast("float64")
    if column.metric.kind == Metric.Kind.PROPORTION:
        return (count > 0).ifelse((total > 0).cast("float64"), ibis.null("float64"))
    return total.cast("float64") / count.nullif(0)
