"""Measures the time of the same statistics from Parquet files, with DuckDB through Ibis.

Exposures and outcomes are raw rows here, so that the query also computes the units' values. In
`bench experiments` PostgreSQL has folded them before the measurement starts.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from time import perf_counter
from typing import TYPE_CHECKING

import duckdb

from bench.experiments import prepare
from bench.testbed import machine
from embedded.stack import running

if TYPE_CHECKING:
    from bench.experiments_load import World

OUTCOMES_PER_UNIT = 3
ROWS = {
    "exposures": """
        SELECT '{name}' AS experiment, 'u' || i AS unit, 'v' || (i % 2) AS variant,
            now() - INTERVAL 1 DAY AS at, i % 1000 = 0 AS crossed_over,
            (i * 7919 % 10000)::SMALLINT AS bucket, '' AS tenant
        FROM range({units}) AS r(i)
    """,
    "outcomes": """
        SELECT 'e' || i AS event_id, 'u' || (i % {units}) AS unit,
            '{name}-m' || ['0', '1', '2', '3', '5', '6', '8'][1 + (i // {units} * 3 + i) % 7]
                AS metric,
            CASE WHEN (i // {units} * 3 + i) % 7 IN (0, 4) THEN (random() < 0.1)::INT
                ELSE random() END::DOUBLE AS value,
            now() - INTERVAL 1 HOUR AS occurred_at
        FROM range({outcomes}) AS r(i)
    """,
    "measured": """
        SELECT '{name}' AS experiment, 'u' || i AS unit, 1 + i % 9 AS requests, (i % 50 = 0)::INT
            AS errors, 0 AS cache_hits, 1000 + i % 90000 AS latency_us
        FROM range({units}) AS r(i)
    """,
}  # fmt: skip


def main() -> None:
    """Print the time by number of units."""
    parser = argparse.ArgumentParser(prog="bench warehouse", description=__doc__)
    parser.add_argument("--units", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument(
        "--url", default="duckdb://", help="Ibis URL, which may have DuckDB settings"
    )
    parser.add_argument("--large", action="store_true", help="measure 10,000,000 units as well")
    options = parser.parse_args(sys.argv[2:])
    print(f"{machine()}; DuckDB in this process, 10 metrics, {OUTCOMES_PER_UNIT} outcomes a unit")
    with (
        tempfile.TemporaryDirectory(prefix="interlock-bench-") as directory,
        running(Path(directory), {"postgres", "redis"}) as stack,
    ):
        prepare(stack)
        from bench.experiments_load import World

        print(f"\n{'units':>12} {'Parquet':>10} {'seconds':>9} {'units/s':>12} {'peak':>8}")
        for units in [*options.units, *([10_000_000] if options.large else [])]:
            world = World(units, 2, 10, "")
            print(_row(world, units, Path(directory), options.url), flush=True)


def _row(world: World, units: int, directory: Path, url: str) -> str:
    from apps.experiments.sufficient_statistics import collect_statistics
    from apps.experiments.warehouse.source import connect
    from apps.lib.clock import database_now

    files = {name: directory / f"{name}.parquet" for name in ROWS}
    with duckdb.connect() as engine:
        for name, path in files.items():
            query = ROWS[name].format(
                name=world.name, units=units, outcomes=units * OUTCOMES_PER_UNIT
            )
            engine.execute(f"COPY ({query}) TO '{path}' (FORMAT parquet)")
    size_mb = sum(path.stat().st_size for path in files.values()) / 1e6
    started = perf_counter()
    source = connect(url, **{name: str(path) for name, path in files.items()})
    statistics = collect_statistics(world.experiment, database_now(), source)
    took_s = perf_counter() - started
    assert sum(statistics.data.exposed.values()) > 0.99 * units
    # The peak of this process since its start; the sizes grow.
    peak_gb = getrusage(RUSAGE_SELF).ru_maxrss / 1e6
    speed = f"{took_s:>8.2f}s {units / took_s:>12,.0f}"
    return f"{units:>12,} {size_mb:>7.0f} MB {speed} {peak_gb:>5.1f} GB"
