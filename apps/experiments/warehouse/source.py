"""A warehouse as a source: Parquet files through DuckDB, or tables of what Ibis connects to."""

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

# Engines whose temporary tables Ibis can make; of Spark's it says so, and cannot.
HAVE_TEMPORARY = {"bigquery", "clickhouse", "duckdb", "postgres", "snowflake"}
PARQUET = re.compile(r"[/\\*]|\.parquet$")


def connect(url: str, *, exposures: str, outcomes: str, measured: str = "") -> Warehouse:
    """Return the warehouse at an Ibis URL; names with a slash, a star or .parquet are files.

    Raises Unavailable when it cannot be reached or lacks a dataset.
    """
    try:
        engine = ibis.connect(url)
        named = {"exposures": exposures, "outcomes": outcomes, "measured": measured}
        found = {dataset: _table(engine, name) for dataset, name in named.items() if name}
    except Exception as error:  # each engine has errors of its own
        raise _away(error) from error
    return Warehouse(Tables(**found), engine)


def _away(error: Exception) -> Unavailable:
    told = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
    return Unavailable(f"The warehouse does not answer: {told}")


def _table(engine: Any, name: str) -> Expr:
    return engine.read_parquet(name) if PARQUET.search(name) else engine.table(name)


class Warehouse:
    """See `sources.Source`. One is made for each result, whose answers are of one instant where
    the engine has temporary tables: the units are then computed once.
    """

    def __init__(self, tables: Tables, engine: Any) -> None:
        """Take a connection's datasets. Raises Unavailable when a column is missing, or wrong."""
        for dataset, table in tables.named().items():
            check_columns(dataset, table, engine.name)
        self._tables = tables
        self._engine = engine
        self._made: tuple[tuple[Any, ...], Expr] | None = None

    def missing_means(self, scan: Scan, places: Sequence[int]) -> list[float | None]:
        (row,) = _rows(queries.missing_means(self._units(scan), places))
        return [row[f"v{place}"] for place in places]

    def phase_counts(self, scan: Scan) -> list[PhaseCount]:
        rows = _rows(queries.phase_counts(self._units(scan), scan))
        counts = ("phase", "kept", "crossed_over", "moved")
        return [PhaseCount(row["variant"], *(int(row[name]) for name in counts)) for row in rows]

    def level_moments(self, scan: Scan, dimension: str) -> list[LevelMoments]:
        seen, names = queries.select_values(self._units(scan), scan, dimension)
        return [
            LevelMoments(
                row["variant"], int(row["phase"]), row["level"], int(row["units"]),
                [queries.comoments(row, parts) for parts in names],
            )
            for row in _rows(queries.level_sums(seen, names))
        ]  # fmt: skip

    def order_statistics(self, scan: Scan, moments: Moments) -> Orders:
        seen, names = queries.select_values(self._units(scan), scan)
        found: Orders = {}
        for place, columns in enumerate(scan.metrics):
            share = (columns.metric.quantile_ppm or 0) / 1_000_000
            arms = {arm: each.n for arm, each in moments[place].items() if each.n and share}
            if not arms:
                continue
            first = names[place][0]
            wanted = {arm: ranks_of(n, share) for arm, n in arms.items()}
            rows = _rows(queries.values_at_ranks(seen, first, wanted))
            at = {(row["variant"], int(row["rank"])): float(row["value"]) for row in rows}
            quantiles = {arm: at[arm, value_rank(n, share)] for arm, n in arms.items()}
            equal = {
                row["variant"]: int(row["n"])
                for row in _rows(queries.count_equal(seen, first, quantiles))
            }
            for arm, ranks in wanted.items():
                found[place, arm] = OrderStatistics(
                    arms[arm], tuple(at[arm, rank] for rank in ranks), quantiles[arm], equal[arm]
                )
        return found

    def distributions(self, scan: Scan, moments: Moments) -> tuple[Edges, Counts]:
        seen, names = queries.select_values(self._units(scan), scan)
        edges = edges_of(scan, moments)
        found: dict[tuple[int, str], list[int]] = {}
        for place, ends in edges.items():
            for row in _rows(queries.count_bins(seen, names[place][0], ends)):
                if row["variant"] in scan.names:
                    counts = found.setdefault((place, row["variant"]), [0] * (len(ends) + 1))
                    counts[int(row["place"])] += int(row["n"])
        return edges, {key: tuple(counts) for key, counts in found.items()}

    def attributions(self, experiment: Experiment, sent: Sequence[SentMetric]) -> list[Attribution]:
        return [attributions(_rows, self._tables, experiment, metric) for metric in sent]

    def _units(self, scan: Scan) -> Expr:
        """Return the experiment's units, checked. Raises Unavailable."""
        of: tuple[Any, ...] = (scan.experiment.pk, scan.now)
        if self._made is None or self._made[0] != of:
            check_rows(scan, self._tables, _rows)
            self._made = of, self._kept(units_of(scan, self._tables))
        return self._made[1]

    def _kept(self, units: Expr) -> Expr:
        """Return them as a temporary table of ours, or as they are where the engine has none."""
        if self._engine.name not in HAVE_TEMPORARY:
            return units
        try:
            # It goes with the connection.
            return self._engine.create_table(f"interlock_units_{uuid4().hex}", units, temp=True)
        except Exception as error:  # each engine has errors of its own
            raise _away(error) from error


def _rows(asked: Expr) -> list[dict[str, Any]]:
    """Return the answer's rows, with None where there is no value. Raises Unavailable."""
    try:
        return list(asked.to_pyarrow().to_pylist())
    except Exception as error:  # each engine has errors of its own
        raise _away(error) from error
