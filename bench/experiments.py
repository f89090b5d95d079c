"""How long a result takes: units' values in PostgreSQL → statistics → report, and how that grows.

All of it is the product's own code on the embedded PostgreSQL. `by metric` is the plain way to ask
the same table: a statement with a GROUP BY for each metric, for count, mean and variance or a
quantile, and no report; it is measured next to each refresh. `fold` is what it costs to make the
values anew of one unit in a hundred, of which an outcome came in. With an `offset` means are a
million times their spread, so that those metrics are summed twice.
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
    """One experiment: how many units, arms and metrics; what else it asks for."""

    units: int
    arms: int = 2
    metrics: int = 10
    asked: str = ""


def main() -> None:
    """Print how long refreshes take, by units, arms, metrics and what is asked for."""
    parser = argparse.ArgumentParser(prog="bench experiments", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="up to 100,000 units")
    parser.add_argument("--large", action="store_true", help="10,000,000 units as well")
    options = parser.parse_args(sys.argv[2:])
    print(f"{machine()}; PostgreSQL and this process on it")
    with (
        tempfile.TemporaryDirectory(prefix="interlock-bench-") as directory,
        running(Path(directory), {"postgres", "redis"}) as stack,
    ):
        prepare(stack)
        measure(shapes_of(options))


def shapes_of(options: argparse.Namespace) -> list[Shape]:
    """Return what is measured, the smaller before the larger."""
    shapes = [Shape(10_000), Shape(100_000)]
    if not options.quick:
        shapes += [
            Shape(1_000_000),
            Shape(1_000_000, asked="CUPED"),
            Shape(1_000_000, asked="breakdown"),
            Shape(1_000_000, asked="offset"),
            Shape(200_000, arms=10, metrics=20),
        ]
    return shapes + ([Shape(10_000_000)] if options.large else [])


def prepare(stack: Stack) -> None:
    """Let Django of this process use the stack."""
    os.environ |= stack.env | {"DJANGO_SETTINGS_MODULE": "controlplane.settings"}
    import django

    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)


def measure(shapes: list[Shape]) -> None:
    """Fill, measure and drop one experiment after the other."""
    from bench.experiments_load import World

    print(
        f"\n{'units':>10} {'arms':>4} {'metrics':>7}  {'with':<9} {'gather':>8} {'report':>8} "
        f"{'refresh':>8} {'by metric':>10} {'ratio':>6} {'fold':>8} {'units/s':>8}  goal"
    )
    for shape in shapes:
        with World(shape.units, shape.arms, shape.metrics, shape.asked) as world:
            print(_row(shape, world), flush=True)


def _row(shape: Shape, world: World) -> str:
    gather_s, report_s = world.analyse()
    refresh_s = timed(world.refresh)
    plain_s = timed(world.ask_by_metric)
    touched = max(1, int(shape.units * TOUCHED_SHARE))
    world.touch(touched)
    fold_s = timed(world.fold)
    goal = GOALS_S.get(shape.units) if not shape.asked else None
    return (
        f"{shape.units:>10,} {shape.arms:>4} {shape.metrics:>7}  {shape.asked or '-':<9} "
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
    """Return whether the goal was met, in a word."""
    return "met" if took_s < goal_s else "missed"
