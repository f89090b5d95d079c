"""Measures the time of a result by size: units' values in PostgreSQL → statistics → report.

It runs the product's own code on the embedded PostgreSQL. `by metric` is the simple alternative:
one GROUP BY statement per metric, for count, mean and variance or a quantile, without a report. It
is measured next to each refresh. `fold` is the time to recompute the values of 1 % of the units
after new outcomes. With `offset` the means are a million times the standard deviation, so that
those metrics are summed twice.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from bench.testbed import machine
from embedded.stack import Stack, running

if TYPE_CHECKING:
    from bench.experiments_load import World

GOALS_S = {1_000_000: 3.0, 10_000_000: 30.0}
TOUCHED_SHARE = 0.01


@dataclass(frozen=True)
class Shape:
    """One experiment: the numbers of units, arms and metrics, and its additional option."""

    units: int
    arms: int = 2
    metrics: int = 10
    option: str = ""


def main() -> None:
    """Print the times of refreshes by units, arms, metrics and option."""
    parser = argparse.ArgumentParser(prog="bench experiments", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="measure up to 100,000 units")
    parser.add_argument("--large", action="store_true", help="measure 10,000,000 units as well")
    options = parser.parse_args(sys.argv[2:])
    print(f"{machine()}; PostgreSQL and this process on it")
    with (
        tempfile.TemporaryDirectory(prefix="interlock-bench-") as directory,
        running(Path(directory), {"postgres", "redis"}) as stack,
    ):
        prepare(stack)
        measure(shapes_of(options))


def shapes_of(options: argparse.Namespace) -> list[Shape]:
    """Return the experiments to measure, smaller ones first."""
    shapes = [Shape(10_000), Shape(100_000)]
    if not options.quick:
        shapes += [
            Shape(1_000_000),
            Shape(1_000_000, option="CUPED"),
            Shape(1_000_000, option="breakdown"),
            Shape(1_000_000, option="offset"),
            Shape(200_000, arms=10, metrics=20),
        ]
    return shapes + ([Shape(10_000_000)] if options.large else [])


def prepare(stack: Stack) -> None:
    """Configure Django in this process to use the stack."""
    os.environ |= stack.env | {"DJANGO_SETTINGS_MODULE": "controlplane.settings"}
    import django

    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)


def measure(shapes: list[Shape]) -> None:
    """Fill, measure and drop each experiment in turn."""
    from bench.experiments_load import World

    print(
        f"\n{'units':>10} {'arms':>4} {'metrics':>7}  {'with':<9} {'gather':>8} {'report':>8} "
        f"{'refresh':>8} {'by metric':>10} {'ratio':>6} {'fold':>8} {'units/s':>8}  goal"
    )
    for shape in shapes:
        with World(shape.units, shape.arms, shape.metrics, shape.option) as world:
            print(_row(shape, world), flush=True)


def _row(shape: Shape, world: World) -> str:
    gather_s, report_s = world.analyse()
    refresh_s = timed(world.refresh)
    plain_s = timed(world.query_by_metric)
    touched = max(1, int(shape.units * TOUCHED_SHARE))
    world.touch(touched)
    fold_s = timed(world.fold)
    goal = GOALS_S.get(shape.units) if not shape.option else None
    return (
        f"{shape.units:>10,} {shape.arms:>4} {shape.metrics:>7}  {shape.option or '-':<9} "
        f"{gather_s:6.2f} s {report_s:6.2f} s {refresh_s:6.2f} s {plain_s:8.2f} s "
        f"{plain_s / refresh_s:6.2f} {fold_s:6.2f} s {touched / fold_s:8,.0f}  "
        f"{'' if goal is None else f'< {goal:g} s: {verdict(refresh_s, goal)}'}"
    )


def timed(work: Callable[[], None]) -> float:
    """Return the seconds that `work` takes."""
    started = perf_counter()
    work()
    return perf_counter() - started


def verdict(took_s: float, goal_s: float) -> str:
    """Return 'met' or 'missed'."""
    return "met" if took_s < goal_s else "missed"
