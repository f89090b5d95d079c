"""A warehouse as a source: Parquet files through DuckDB, or tables of an engine of Ibis."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import ibis

from apps.experiments.attribution import Attribution, SentMetric
from apps.experiments.distributions import Counts, Edges, Moments, Orders, edges_of
from apps.experiments.models import Experiment
from apps.experiments.sources import LevelMoments, PhaseCount
from apps.experiments.stats.data import OrderStatistics
from apps.experiments.stats.quantiles import ranks_of, value_rank
from apps.experiments.unit_query import Scan
from apps.experiments.warehouse import queries
from apps.experiments.warehouse.attribution import attributions
from apps.experiments.warehouse.datasets import check_columns, check_rows
from apps.experiments.warehouse.units import Expr, Tables, units_of
from apps.lib.errors import Unavailable

# Engines in which Ibis can create temporary tables. For Spark it claims so, but fails.
HAVE_TEMPORARY = {"bigquery", "clickhouse", "duckdb", "postgres", "snowflake"}
PARQUET = re.compile(r"[/\\*]|\.parquet$")


def connect(url: str, *, exposures: str, outcomes: str, measured: str = "") -> Warehouse:
    """Return the warehouse at an Ibis URL; names with a slash, a star or .parquet are files.

    Raises Unavailable if it cannot be reached or has no such dataset.
    """
    try:
        engine = ibis.connect(url)
        named = {"exposures": exposures, "outcomes": outcomes, "measured": measured}
        tables = {dataset: _table(engine, name) for dataset, name in named.items() if name}
    except Exception as error:  # each engine has its own error types
        raise _unavailable(error) from error
    return Warehouse(Tables(**tables), engine)


def _unavailable(error: Exception) -> Unavailable:
    message = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
    return Unavailable(f"The warehouse does not answer: {message}")


def _table(engine: Any, name: str) -> Expr:
    return engine.read_parquet(name) if PARQUET.search(name) else engine.table(name)


class Warehouse:
    """A warehouse that implements `sources.Source`, created for each result.

    If the engine has temporary tables, the units are computed once, and all answers are of the same
    time.
    """

    def __init__(self, tables: Tables, engine: Any) -> None:
        """Check the datasets' columns. Raises Unavailable if one is missing or has a wrong type."""
        for dataset, table in tables.named().items():
            check_columns(dataset, table, engine.name)
        self._tables = tables
        self._engine = engine
        self._cached_units: tuple[tuple[Any, ...], Expr] | None = None

    def missing_means(self, scan: Scan, places: Sequence[int]) -> list[float | None]:
        (row,) = _rows(queries.missing_means(self._units(scan), places))
        return [row[f"v{place}"] for place in places]

    def phase_counts(self, scan: Scan) -> list[PhaseCount]:
        rows = _rows(queries.phase_counts(self._units(scan), scan))
        counts = ("phase", "kept", "crossed_over", "moved")
        return [PhaseCount(row["variant"], *(int(row[name]) for name in counts)) for row in rows]

    def level_moments(self, scan: Scan, dimension: str) -> list[LevelMoments]:
        units, names = queries.select_values(self._units(scan), scan, dimension)
        return [
            LevelMoments(
                row["variant"], int(row["phase"]), row["level"], int(row["units"]),
                [queries.comoments(row, parts) for parts in names],
            )
            for row in _rows(queries.level_sums(units, names))
        ]  # fmt: skip

    def order_statistics(self, scan: Scan, moments: Moments) -> Orders:
        units, names = queries.select_values(self._units(scan), scan)
        orders: Orders = {}
        for place, columns in enumerate(scan.metrics):
            share = (columns.metric.quantile_ppm or 0) / 1_000_000
            arms = {arm: each.n for arm, each in moments[place].items() if each.n and share}
            if not arms:
                continue
            first = names[place][0]
            ranks_by_arm = {arm: ranks_of(n, share) for arm, n in arms.items()}
            rows = _rows(queries.values_at_ranks(units, first, ranks_by_arm))
            at = {(row["variant"], int(row["rank"])): float(row["value"]) for row in rows}
            quantiles = {arm: at[arm, value_rank(n, share)] for arm, n in arms.items()}
            equal = {
                row["variant"]: int(row["n"])
                for row in _rows(queries.count_equal(units, first, quantiles))
            }
            for arm, ranks in ranks_by_arm.items():
                orders[place, arm] = OrderStatistics(
                    arms[arm], tuple(at[arm, rank] for rank in ranks), quantiles[arm], equal[arm]
                )
        return orders

    def distributions(self, scan: Scan, moments: Moments) -> tuple[Edges, Counts]:
        units, names = queries.select_values(self._units(scan), scan)
        edges = edges_of(scan, moments)
        bin_counts: dict[tuple[int, str], list[int]] = {}
        for place, ends in edges.items():
            for row in _rows(queries.count_bins(units, names[place][0], ends)):
                if row["variant"] in scan.names:
                    counts = bin_counts.setdefault((place, row["variant"]), [0] * (len(ends) + 1))
                    counts[int(row["place"])] += int(row["n"])
        return edges, {key: tuple(counts) for key, counts in bin_counts.items()}

    def attributions(self, experiment: Experiment, sent: Sequence[SentMetric]) -> list[Attribution]:
        return [attributions(_rows, self._tables, experiment, metric) for metric in sent]

    def _units(self, scan: Scan) -> Expr:
        """Return the experiment's validated units. Raises Unavailable."""
        key: tuple[Any, ...] = (scan.experiment.pk, scan.now)
        if self._cached_units is None or self._cached_units[0] != key:
            check_rows(scan, self._tables, _rows)
            self._cached_units = key, self._kept(units_of(scan, self._tables))
        return self._cached_units[1]

    def _kept(self, units: Expr) -> Expr:
        """Return the units as a temporary table, or unchanged if the engine has none."""
        if self._engine.name not in HAVE_TEMPORARY:
            return units
        try:
            # The table is dropped with the connection.
            return self._engine.create_table(f"interlock_units_{uuid4().hex}", units, temp=True)
        except Exception as error:  # each engine has its own error types
            raise _unavailable(error) from error


def _rows(query: Expr) -> list[dict[str, Any]]:
    """Return the rows of a query, with None for a missing value. Raises Unavailable."""
    try:
        return list(query.to_pyarrow().to_pylist())
    except Exception as error:  # each engine has its own error types
        raise _unavailable(error) from error
