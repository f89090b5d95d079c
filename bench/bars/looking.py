"""Simulates rollouts by the default plan: traffic per slice, and the rule at each look."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from apps.rollouts.check_outcomes import Levels, Measure, rule
from apps.rollouts.checks import CheckSettings
from apps.rollouts.comparison import Comparison, Series
from apps.rollouts.dispersion import Clusters, History, sums
from apps.rollouts.eprocess import Counts, columns_of
from apps.rollouts.segments import SLICES
from bench.bars import Bar
from bench.decisions_rules import Array, Rng

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

# The steps of the default plan that have a control, half an hour each, in intervals of 10 s.
SHARES = (0.05, 0.10, 0.25, 0.50)
INTERVALS = 180
INTERVAL_S = 10.0
SLICE_S = INTERVAL_S / SLICES
MARGIN = 0.01
# The default plan: three guardrails share 1 %.
AS_SHIPPED = CheckSettings(alpha=0.01, guardrails=3)
ONE_OF_TWENTY = CheckSettings(alpha=0.05)
# The number of runs per batch, so that the arrays fit the CPU cache.
PART = 25

Make = Callable[[slice], Sequence[Measure]]


def shares_of(shares: Sequence[float] = SHARES, intervals: int = INTERVALS) -> Array:
    """Return the canary's share in each interval."""
    return np.repeat(np.asarray(shares), intervals)


def steps_of(shares: Array) -> Integers:
    """Return the step of each interval: the share changes with it."""
    return np.cumsum(np.diff(shares, prepend=shares[0]) != 0.0)


def draw(
    rng: Rng,
    runs: int,
    shares: Array,
    per_second: float,
    rates: tuple[Array | float, Array | float],
    slices: int = SLICES,
) -> Counts:
    """Draw requests and errors of both versions, `(runs, intervals, slices)`.

    `rates` are those of canary and control, in a shape that broadcasts to it.
    """
    shape = (runs, shares.size, slices)
    canary = rng.poisson(per_second * INTERVAL_S / slices * shares[:, None], shape)
    control = rng.poisson(per_second * INTERVAL_S / slices * (1.0 - shares)[:, None], shape)
    errors = rng.binomial(canary, rates[0]), rng.binomial(control, rates[1])
    columns = (canary, errors[0], control, errors[1])
    return Counts(*(column.astype(np.float64) for column in columns))


def errors_of(
    counts: Counts, steps: Integers, clusters: Clusters | None = None, before: History | None = None
) -> Make:
    """Return a function that returns the error-rate measure of a slice of the runs."""

    def make(mine: slice) -> Sequence[Measure]:
        part = Counts(*(column[mine] for column in columns_of(counts)))
        run_clusters = (
            None if clusters is None else Clusters(clusters.n[mine], clusters.events[mine])
        )
        series = Series(
            part, steps, run_clusters, None if before is None else of_runs(before, mine)
        )
        return [Measure("errors", Comparison.of(series, margin=MARGIN), MARGIN)]

    return make


def of_runs(history: History, mine: slice) -> History:
    """Return the history of a slice of the runs."""
    return History(
        history.intervals,
        history.events[mine],
        history.at_once[mine],
        history.after[mine],
        history.binomial[mine],
        history.scale[mine],
    )


def clusters_of(exposures: Array, events: Array) -> Clusters:
    """Return control's clusters from counts by interval, `(runs, intervals, clusters)`."""
    return Clusters(sums(exposures, axis=-2), sums(events, axis=-2))


def rollbacks(
    make: Make, runs: int, looks: Sequence[int], settings: CheckSettings, slices: int = SLICES
) -> Integers:
    """Return the number of intervals until each run is rolled back, 0 if it never is.

    `looks` are the numbers of intervals after which the rule is evaluated.
    """
    result = np.zeros(runs, dtype=np.int64)
    levels: Levels = settings.levels(slices)
    for first in range(0, runs, PART):
        mine = slice(first, first + PART)
        measures, out = make(mine), result[mine]
        for now in looks:
            ruling = rule(measures, now, levels)
            out[(out == 0) & (ruling.is_worse | ruling.is_regression_beyond)] = now
            if out.all():
                break
    return result


def requests_until(counts: Counts, rolled_back: Integers, start: int = 0) -> Array:
    """Return the canary requests from interval `start` to the rollback; NaN without one."""
    canary_n = counts.canary_n[:, start:].sum(axis=-1).cumsum(axis=-1)
    last = np.maximum(rolled_back - start - 1, 0)[:, None]
    taken = np.take_along_axis(canary_n, last, axis=-1)[:, 0]
    return np.where(rolled_back > start, taken, np.nan)


def mean_of(name: str, taken: Array, bound: float) -> Bar:
    """Return the bar on a mean number of requests, over the runs with a value."""
    values = taken[~np.isnan(taken)]
    error = float(values.std() / np.sqrt(max(1, values.size)))
    mean = float(values.mean()) if values.size else float("nan")
    return Bar(name, mean, error, bound, is_share=False)
