"""A warehouse as a source: Parquet files through DuckDB, or tables of what Ibis connects to.

Means, variances and covariances are the engine's own aggregates. DuckDB's centre (Welford); whether
another engine's do is that engine's affair, and ClickHouse says that its do not. Quantiles are
exact, by ranks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import ibis

from apps.experiments.models import Metric
from apps.experiments.moves import TENANT
from apps.experiments.scan import Scan, before
from apps.experiments.sources import LevelMoments, PhaseCount
from apps.experiments.spreads import Counts, Edges, Moments, Orders, edges_of
from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.data import OrderStatistics
from apps.experiments.stats.quantiles import ranks_of
from apps.experiments.warehouse.datasets import check_columns, check_rows
from apps.experiments.warehouse.units import Expr, Tables, units_of
from apps.lib.errors import Unavailable

NO_LEVEL = "(none)"
UNITS = "interlock_units"
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
    for dataset, table in found.items():
        check_columns(dataset, table)
    return Warehouse(Tables(**found), engine)


def _away(error: Exception) -> Unavailable:
    told = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
    return Unavailable(f"The warehouse does not answer: {told}")


def _table(engine: Any, name: str) -> Expr:
    return engine.read_parquet(name) if PARQUET.search(name) else engine.table(name)


class Warehouse:
    """See `sources.Source`."""

    def __init__(self, tables: Tables, engine: Any) -> None:
        self._tables = tables
        self._engine = engine
        self._kept: tuple[Scan, Expr] | None = None

    def missing_means(self, scan: Scan, places: Sequence[int]) -> list[float | None]:
        units = units_of(scan, self._tables)
        units = units.filter(~units.crossed_over)
        asked = {f"v{place}": units[f"v{place}"].mean() for place in places}
        row = _rows(units.aggregate(**asked))[0]
        return [row[f"v{place}"] for place in places]

    def phase_counts(self, scan: Scan) -> list[PhaseCount]:
        # Every result begins with these counts.
        check_rows(scan.experiment.name, self._tables, _rows)
        units = units_of(scan, self._tables)
        phase = sum(
            ((units.at >= later.at).cast("int64") for later in scan.phases[1:]), ibis.literal(0)
        )
        moved = _moved(units, scan)
        units = units.mutate(_phase=phase, _moved=moved)
        asked = units.group_by(["variant", "_phase"]).aggregate(
            kept=(~units.crossed_over & ~units._moved).sum(),
            crossed=units.crossed_over.sum(),
            moved=(~units.crossed_over & units._moved).sum(),
        )
        return [
            PhaseCount(
                variant=row["variant"],
                phase=int(row["_phase"]),
                kept=int(row["kept"]),
                crossed_over=int(row["crossed"]),
                moved=int(row["moved"]),
            )
            for row in _rows(asked)
        ]

    def level_moments(self, scan: Scan, dimension: str) -> list[LevelMoments]:
        units, names = self._valued(scan)
        units = units.mutate(_level=_level(units, dimension))
        asked: dict[str, Expr] = {"_units": units.count()}
        for parts in names:
            for i, name in enumerate(parts):
                column = units[name]
                asked |= {f"{name}_n": column.count(), f"{name}_mean": column.mean()}
                asked[f"{name}_{name}"] = column.var(how="pop")
                for other in parts[i + 1 :]:
                    asked[f"{name}_{other}"] = column.cov(units[other], how="pop")
        rows = _rows(units.group_by(["variant", "_level"]).aggregate(**asked))
        return [
            LevelMoments(
                row["variant"], row["_level"], int(row["_units"]),
                [_comoments(row, parts) for parts in names],
            )
            for row in rows
        ]  # fmt: skip

    def order_statistics(self, scan: Scan, moments: Moments) -> Orders:
        units, names = self._valued(scan)
        found: Orders = {}
        for place, columns in enumerate(scan.metrics):
            share = (columns.metric.quantile_ppm or 0) / 1_000_000
            arms = {arm: each.n for arm, each in moments[place].items() if each.n and share}
            if not arms:
                continue
            (value,) = names[place]
            known = units.filter(units[value].notnull()).select("variant", value=units[value])
            rank = ibis.row_number().over(ibis.window(group_by="variant", order_by="value"))
            ranked = known.mutate(_rank=rank + 1)
            wanted = {arm: ranks_of(n, share) for arm, n in arms.items()}
            chosen = ibis.or_(
                *(
                    (ranked.variant == arm) & ranked._rank.isin(sorted(set(ranks)))
                    for arm, ranks in wanted.items()
                )
            )
            told = {
                (r["variant"], int(r["_rank"])): r["value"] for r in _rows(ranked.filter(chosen))
            }
            for arm, ranks in wanted.items():
                low, middle, high = (float(told[arm, number]) for number in ranks)
                found[place, arm] = OrderStatistics(arms[arm], low, middle, high)
        return found

    def distributions(self, scan: Scan, moments: Moments) -> tuple[Edges, Counts]:
        units, names = self._valued(scan)
        edges = edges_of(scan, moments)
        found: dict[tuple[int, str], list[int]] = {}
        for place, ends in edges.items():
            value = units[names[place][0]]
            at_bin = sum(((value >= end).cast("int64") for end in ends), ibis.literal(0))
            known = units.filter(value.notnull()).mutate(_bin=at_bin)
            rows = _rows(known.group_by(["variant", "_bin"]).aggregate(n=known.count()))
            for row in rows:
                if row["variant"] in scan.names:
                    counts = found.setdefault((place, row["variant"]), [0] * (len(ends) + 1))
                    counts[int(row["_bin"])] += int(row["n"])
        return edges, {key: tuple(counts) for key, counts in found.items()}

    def _valued(self, scan: Scan) -> tuple[Expr, list[list[str]]]:
        """Return the units that are in an arm with each metric's values as columns, and these."""
        if self._kept is None or self._kept[0] is not scan:
            units = units_of(scan, self._tables)
            units = units.filter(~units.crossed_over & ~_moved(units, scan))
            named = {
                f"m{i}_{j}": part
                for i in range(len(scan.metrics))
                for j, part in enumerate(_values(units, scan, i))
            }
            self._kept = scan, self._made(units.mutate(**named))
        units = self._kept[1]
        names = [[f"m{i}_{j}" for j in range(_width(scan, i))] for i in range(len(scan.metrics))]
        return units, names

    def _made(self, units: Expr) -> Expr:
        """Return the table made once, where the engine has tables that only we see.

        Elsewhere each question makes it anew.
        """
        if self._engine.name != "duckdb":
            return units
        query = ibis.to_sql(units, dialect="duckdb")
        self._engine.raw_sql(f"CREATE OR REPLACE TEMP TABLE {UNITS} AS {query}")
        return self._engine.table(UNITS)


def _width(scan: Scan, place: int) -> int:
    return len(scan.metrics[place].places)


def _values(units: Expr, scan: Scan, place: int) -> list[Expr]:
    """Return a unit's values of one metric: all of them, or all NULL; see `scan.values`."""
    columns = scan.metrics[place]
    metric = columns.metric
    now = columns.places[: len(columns.places) // 2] if columns.has_covariate else columns.places
    is_ratio = metric.kind == Metric.Kind.RATIO
    first = units[f"v{now[0]}"]
    if metric.missing_is_zero or is_ratio:
        first = first.fill_null(0.0)
    if metric.cap is not None:
        first = (first > metric.cap).ifelse(metric.cap, first)
    found = [first]
    if is_ratio:
        found.append(units[f"v{now[1]}"].fill_null(0.0))
    found += [units[f"v{at}"].fill_null(scan.missing.get(at, 0.0)) for at in before(columns)]
    counts = ibis.literal(True)
    if metric.window_s is not None:
        counts &= units.at + ibis.interval(seconds=metric.window_s) <= ibis.literal(scan.now)
    if not metric.missing_is_zero:
        counts &= units[f"v{now[-1]}"].notnull()
    return [counts.ifelse(value.cast("float64"), ibis.null("float64")) for value in found]


def _moved(units: Expr, scan: Scan) -> Expr:
    """Return whether a unit's bucket moved after it was met; see `Scan.moved`."""
    found = ibis.literal(False)
    for i, (phase, later) in enumerate(zip(scan.phases, scan.phases[1:], strict=False)):
        met = units.at < ibis.literal(later.at)
        if i:
            met &= units.at >= ibis.literal(phase.at)
        for low, high in phase.moved:
            found |= met & (units.bucket >= low) & (units.bucket < high)
    return found


def _level(units: Expr, dimension: str) -> Expr:
    if not dimension:
        return ibis.literal("")
    if dimension not in units.columns:
        raise Unavailable(f"The warehouse's exposures have no column {dimension}, a dimension.")
    level = units[dimension].cast("string")
    return (
        level.nullif("").fill_null(NO_LEVEL) if dimension == TENANT else level.fill_null(NO_LEVEL)
    )


def _comoments(row: dict[str, Any], parts: Sequence[str]) -> Comoments:
    n = int(row[f"{parts[0]}_n"])
    if n == 0:
        return Comoments.empty(len(parts))
    products = tuple(
        float(row[f"{name}_{other}"] or 0.0) * n
        for i, name in enumerate(parts)
        for other in parts[i:]
    )
    return Comoments(n, tuple(float(row[f"{name}_mean"]) for name in parts), products)


def _rows(asked: Expr) -> list[dict[str, Any]]:
    """Return the answer's rows, with None where there is no value. Raises Unavailable."""
    try:
        return list(asked.to_pyarrow().to_pylist())
    except Exception as error:  # each engine has errors of its own
        raise _away(error) from error
