"""Measures the growth of the database: bytes per row of each growing table, and the size of a year.

The product's own ingestion and models write the rows to a real PostgreSQL, from events like those
of a fleet. The bytes of a table include its indexes. The number of rows is computed and printed
with its assumptions; `--help` lists the options that change them.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from bench.testbed import machine
from embedded.stack import running

if TYPE_CHECKING:
    from bench.growth_rows import Rows

RATES = (1_000, 10_000)
DAY_S = 86_400
YEAR_DAYS = 365
GIB = 1024**3


@dataclass(frozen=True)
class Fleet:
    """The assumptions about a fleet."""

    requests: float
    per_instance: float
    models: int
    live: int
    checks: int
    interval_s: float
    rollouts_a_day: float
    outcomes: float
    exposures: float

    @property
    def instances(self) -> int:
        return max(2, ceil(self.requests / self.per_instance))


@dataclass(frozen=True)
class Table:
    """A growing table: its kind of retention, and the rows per second of a fleet."""

    name: str
    kind: str
    rows: Callable[[Fleet], float]
    how: str


TABLES = (
    Table("rollouts_telemetryrow", "windows", lambda f: f.instances * (f.models + f.live),
          "a window a second for each instance, model and side"),
    Table("rollouts_shadowrow", "windows", lambda f: f.instances * 1.0,
          "one shadow on each instance"),
    Table("rollouts_ingestedbatch", "batches", lambda f: f.instances * 3.0,
          "a batch a second for each instance and stream"),
    Table("rollouts_evaluation", "evaluations", lambda f: f.live * f.checks / f.interval_s,
          "each check of each live rollout at each interval"),
    Table("rollouts_observedinterval", "decisions", lambda f: f.live / f.interval_s,
          "one for each live rollout and interval; decisions rest on nearly all"),
    Table("experiments_outcomerow", "outcomes", lambda f: f.requests * f.outcomes, "outcomes"),
    Table("experiments_exposurerow", "exposures", lambda f: f.requests * f.exposures,
          "first exposures of units to experiments"),
    Table("experiments_measuredunit", "exposures", lambda f: f.requests * f.exposures,
          "as many, where experiments measure latency or errors"),
    Table("experiments_rolloutexposure", "shadow_pairs", lambda f: f.requests * f.exposures,
          "first meetings with rollouts that judge outcomes"),
    Table("experiments_shadowpairrow", "shadow_pairs",
          lambda f: f.rollouts_a_day * 50_000 / DAY_S, "at most 50,000 for each rollout"),
    Table("experiments_unitcount", "sketches", lambda f: f.models / 3_600, "by model and hour"),
    Table("registry_auditentry", "audit", lambda f: 500 / DAY_S, "500 a day"),
    Table("django_session", "sessions", lambda f: 50 / DAY_S, "50 log-ins a day, 14 days each"),
)  # fmt: skip


def main() -> None:
    """Print bytes per row, and the size after a year with and without retention."""
    options = parse(sys.argv[2:])
    print(f"{machine()}; a new PostgreSQL; {options.rows:,} rows of each table, some of fewer")
    with (
        tempfile.TemporaryDirectory(prefix="interlock-bench-") as directory,
        running(Path(directory), {"postgres", "redis"}) as stack,
    ):
        os.environ |= stack.env | {"DJANGO_SETTINGS_MODULE": "controlplane.settings"}
        import django

        django.setup()
        from django.core.management import call_command

        from bench.growth_rows import Rows

        call_command("migrate", verbosity=0)
        rows = Rows(options.rows, random.Random(5))
        rows.fill()
        sizes = {table.name: rows.size(table.name) for table in TABLES}
        print_sizes(sizes)
        for requests in RATES:
            print_year(fleet_of(options, requests), sizes, rows)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench growth", description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument(
        "--models", type=int, default=20, help="models that get requests in each second"
    )
    parser.add_argument("--live", type=int, default=2, help="live rollouts at any time")
    parser.add_argument("--checks", type=int, default=4, help="checks of a step")
    parser.add_argument("--interval", type=float, default=10.0, help="seconds between evaluations")
    parser.add_argument("--rollouts", type=float, default=5.0, help="rollouts per day")
    parser.add_argument("--outcomes", type=float, default=0.5, help="outcomes per request")
    parser.add_argument("--exposures", type=float, default=0.05, help="new units per request")
    parser.add_argument(
        "--per-instance", type=float, default=2_500.0, help="requests per second and instance"
    )
    return parser.parse_args(arguments)


def fleet_of(options: argparse.Namespace, requests: float) -> Fleet:
    return Fleet(
        requests, options.per_instance, options.models, options.live, options.checks,
        options.interval, options.rollouts, options.outcomes, options.exposures,
    )  # fmt: skip


def print_sizes(sizes: dict[str, tuple[int, int, int]]) -> None:
    print(f"\n{'table':<30} {'rows':>8} {'bytes/row':>10} {'of it indexes':>14}")
    for name, (count, size, indexes) in sizes.items():
        print(f"{name:<30} {count:>8,} {size / count:>10,.0f} {indexes / count:>14,.0f}")


def print_year(fleet: Fleet, sizes: dict[str, tuple[int, int, int]], rows: Rows) -> None:
    """Print rows × seconds × bytes of a year, and the part that retention keeps."""
    print(
        f"\n{fleet.requests:,.0f} requests/s: {fleet.instances} instances, {fleet.models} models "
        f"with requests, {fleet.live} live rollouts with {fleet.checks} checks every "
        f"{fleet.interval_s:g} s, {fleet.rollouts_a_day:g} rollouts per day, "
        f"{fleet.outcomes:g} outcomes and {fleet.exposures:g} new units per request"
    )
    print(f"{'table':<30} {'rows/s':>9} {'GiB/year':>10} {'kept days':>10} {'GiB kept':>9}  rows")
    year = kept = 0.0
    for table in TABLES:
        count, size, _ = sizes[table.name]
        a_day = table.rows(fleet) * DAY_S * size / count / GIB
        days = rows.days(table.kind)
        # A partition is dropped once all of its rows have expired: one day, or month, more.
        spare = {"windows": 1, "evaluations": 31}.get(table.kind, 0)
        held_days = min(YEAR_DAYS, days + spare) if days else YEAR_DAYS
        year += a_day * YEAR_DAYS
        kept += a_day * held_days
        print(
            f"{table.name:<30} {table.rows(fleet):>9,.2f} {a_day * YEAR_DAYS:>10,.1f} "
            f"{days or 'ever':>10} {a_day * held_days:>9,.1f}  {table.how}"
        )
    print(f"{'all':<30} {'':>9} {year:>10,.1f} {'':>10} {kept:>9,.1f}  after a year")
