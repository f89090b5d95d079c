"""The evidence of canary against control at one look, and the segment that it comes from.

Everything is a function of the counts until now. Arrays have leading axes for independent runs, so
that simulations and the product use the same code; the product has no leading axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apps.rollouts import dispersion
from apps.rollouts.dispersion import Clusters, History, Pace, sums
from apps.rollouts.eprocess import (
    EXPECTED_RATE,
    RARE,
    Array,
    Bets,
    Counts,
    Factors,
    columns_of,
    factors,
    processes_of,
    settled_factors,
)
from apps.rollouts.segments import Carried, Integers, Stakes, carry, stakes_of


@dataclass(frozen=True)
class Series:
    """The counts of both versions by interval.

    `counts` have the shape `(…, intervals, slices)`, `steps` is each interval's step, `clusters`
    are the control's sums by cluster of units, None where clusters were not counted.
    """

    counts: Counts
    steps: Integers
    clusters: Clusters | None = None
    # The control's dispersion over time before the first interval, where it is known.
    before: History | None = None


@dataclass(frozen=True)
class Comparison:
    """A series with all its bets settled; `look` evaluates it after any number of intervals."""

    series: Series
    stakes: Stakes
    factors: Factors
    # Sums of the factors over the first k intervals, `(…, intervals + 1, bets)`.
    totals: Factors
    # Sums over the first k intervals by the weights m = n1·n0/N of Mantel and Haenszel:
    # m, m·r1, m·r0, m².
    weights: Array
    canary: Array
    control: Array
    squares: Array
    # Both versions by interval, `(…, intervals)`.
    paces: tuple[Pace, Pace]

    @classmethod
    def of(
        cls,
        series: Series,
        *,
        margin: float,
        expected_rate: float = EXPECTED_RATE,
        bets: Bets = RARE,
    ) -> Comparison:
        """Settle all bets. Raises ValueError unless margin and expected rate lie in (0, 1)."""
        counts = series.counts
        # In a single run, earlier looks have settled most intervals.
        settle = settled_factors if counts.canary_n.ndim == 2 else factors
        settled = settle(counts, margin=margin, expected_rate=expected_rate, bets=bets)
        slices = counts.canary_n.shape[-1]
        n1, a, n0, b = (each.sum(axis=-1) for each in columns_of(counts))
        usable = (n1 > 0) & (n0 > 0)
        inverse = np.where(usable, 1.0 / np.maximum(n1 + n0, 1.0), 0.0)
        weight = n1 * n0 * inverse
        return cls(
            series,
            stakes_of(series.steps),
            settled,
            Factors(*(_running_totals(each, slices) for each in processes_of(settled))),
            sums(weight),
            sums(a * n0 * inverse),
            sums(b * n1 * inverse),
            sums(weight**2),
            (Pace(n1, a), Pace(n0, b)),
        )

    def look(self, now: int, time_variance: Array | None = None) -> Look:
        """Return the evidence of the first `now` intervals.

        `time_variance` is the control's dispersion over time, if it is known already.
        """
        stakes = self.stakes.until(now)
        if time_variance is None:
            time_variance = self.time_variance(now)
        varied = self._dispersion(stakes.starts, now, time_variance)
        processes = [
            carry(each[..., now, None, :] - each[..., stakes.starts, :], stakes, varied)
            for each in processes_of(self.totals)
        ]
        return Look(self, now, varied, stakes, *processes)

    def time_variance(self, now: int) -> Array:
        """Return the control's relative variance over time in the first `now` intervals."""
        canary, control = (Pace(each.n[..., :now], each.events[..., :now]) for each in self.paces)
        return dispersion.over_time(canary, control, self.series.before)

    def _dispersion(self, starts: Integers, now: int, time_variance: Array) -> Array:
        """Return the dispersion φ of the counts from each start to now, shape `(…, starts)`."""
        clusters = self.series.clusters
        shape = (*self.weights.shape[:-1], len(starts))
        of_units = (
            np.ones(shape) if clusters is None else dispersion.of_clusters(clusters, starts, now)
        )
        weight = self.weights[..., now, None] - self.weights[..., starts]
        squares = self.squares[..., now, None] - self.squares[..., starts]
        rate = self.control[..., now] / np.maximum(self.weights[..., now], 1e-12)
        # A relative variance s over time is s·r² in either arm: 2·s·r²·Σm² beside the
        # binomial r(1 − r)·Σm of the weighted difference.
        odds = (2.0 * time_variance * rate / np.maximum(1.0 - rate, 1e-3))[..., None]
        result: Array = of_units + odds * squares / np.where(weight > 0.0, weight, 1.0)
        return result

    def rates(self, starts: Integers, now: int) -> tuple[Array, Array]:
        """Both versions' rates from each run's start to now, by the weights n1·n0/N.

        So neither a change of the shares nor of the base rate appears as a difference (Mantel
        and Haenszel 1959; Greenland and Robins 1985). 0 without data on both sides.
        """

        def since(total: Array) -> Array:
            first = np.take_along_axis(total, np.asarray(starts)[..., None], axis=-1)[..., 0]
            result: Array = total[..., now] - first
            return result

        weight = since(self.weights)
        safe = np.where(weight > 0.0, weight, 1.0)
        return since(self.canary) / safe, since(self.control) / safe

    def without_best_slices(self, process: str, carried: Carried, now: int, excluded: int) -> Array:
        """Return the log gain of the decisive stake since its entry without its best slices.

        The `excluded` best slices of each bet are left out; the best bet counts. These logs are
        not divided by the dispersion, so that only their sign is meaningful.
        """
        slices = self.series.counts.canary_n.shape[-1]
        logs = getattr(self.factors, process)
        flat = logs.reshape(-1, *logs.shape[-2:])
        kept = np.empty(len(flat))
        for run, start in enumerate(np.ravel(carried.start)):
            logs_since = flat[run, start * slices : now * slices]
            best = np.sort(np.maximum(logs_since, 0.0), axis=0)[
                max(0, len(logs_since) - excluded) :
            ]
            kept[run] = (logs_since.sum(axis=0) - best.sum(axis=0)).max()
        return kept.reshape(np.shape(carried.start))


@dataclass(frozen=True)
class Look:
    """The evidence after the first `now` intervals, arrays of the runs' shape.

    `dispersion` has the shape `(…, stakes)`. `margin` tests "at most δ worse", `zero` "not worse",
    `mirror` "at least δ worse".
    """

    comparison: Comparison
    now: int
    dispersion: Array
    stakes: Stakes
    margin: Carried
    zero: Carried
    mirror: Carried

    def rates(self, carried: Carried) -> tuple[Array, Array]:
        """Return both rates in the segment that the process's evidence comes from."""
        return self.comparison.rates(carried.start, self.now)


def _running_totals(logs: Array, slices: int) -> Array:
    """Return the sums of `(…, slices of all intervals, bets)` over the first k intervals."""
    by_interval = logs.reshape(*logs.shape[:-2], -1, slices, logs.shape[-1]).sum(axis=-2)
    return sums(by_interval, axis=-2)
