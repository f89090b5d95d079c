"""Acceptance bars for decisions, one module per section.

A bar is missed if the measured value exceeds its bound by more than two standard errors.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import django
import numpy as np

Rng = np.random.Generator

# The module of a section has `bars(rng, runs)`, which yields its bars. `runs` is the number of
# simulated rollouts or experiments per case; a module may scale it by the cost of its runs.
SECTIONS: dict[str, str] = {
    "outcome": "bench.bars.outcome",
    "weight-phases": "bench.bars.weight_phases",
    "quantiles": "bench.bars.quantiles",
    "skew": "bench.bars.skew",
    "margins": "bench.bars.margins",
    "sample_ratio": "bench.bars.sample_ratio",
    "control": "bench.bars.control",
    "passing": "bench.bars.passing",
    "ends-judged": "bench.bars.ends_judged",
    "late": "bench.bars.late",
    "bursts": "bench.bars.bursts",
    "users": "bench.bars.users",
    "paired": "bench.bars.paired",
    "whole-path": "bench.bars.whole_path",
}


@dataclass(frozen=True)
class Bar:
    """One requirement. `measured` and `bound` share a unit; `error` is the standard error."""

    name: str
    measured: float
    error: float
    bound: float
    # Whether the bound is the largest allowed value; else it is the smallest.
    is_most: bool = True
    # Printed as a percentage; else as a plain number.
    is_share: bool = True

    @property
    def is_missed(self) -> bool:
        beyond = self.measured - self.bound if self.is_most else self.bound - self.measured
        return not beyond <= 2.0 * self.error


def share(name: str, hits: int, runs: int, bound: float, *, is_most: bool = True) -> Bar:
    """Return a bar on a share, `hits` of `runs`, with its binomial error.

    The error is that of Agresti and Coull (1998), which is not 0 for 0 hits.
    """
    shrunk = (hits + 2.0) / (runs + 4.0)
    error = math.sqrt(shrunk * (1.0 - shrunk) / (runs + 4.0))
    return Bar(name, hits / runs, error, bound, is_most=is_most)


def bars_of(section: str, rng: Rng, runs: int) -> Iterator[Bar]:
    """Return the bars of a section, which run its simulation."""
    # Plans and decision rules need Django; one section has its own database.
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    bars: Iterator[Bar] = importlib.import_module(SECTIONS[section]).bars(rng, runs)
    return bars


def line(bar: Bar) -> str:
    """Return the row `bar | measured ± standard error | required | met or missed`."""
    sign = "≤" if bar.is_most else "≥"
    verdict = "MISSED" if bar.is_missed else "met"
    if bar.is_share:
        cells = f"{bar.measured:8.2%} ± {bar.error:.2%}", f"{sign} {bar.bound:.2%}"
    else:
        cells = f"{bar.measured:8.4g} ± {bar.error:.2g}", f"{sign} {bar.bound:.4g}"
    return f"  {bar.name:<74} {cells[0]:>20}  {cells[1]:>10}  {verdict}"
