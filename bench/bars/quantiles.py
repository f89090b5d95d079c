"""Quantiles of rounded, rare and continuous values: false positives, coverage and power.

The product's own estimate and reading evaluate every look that could be significant. A look is
skipped only if the deviance at the true quantile proves that the region of `stats.quantiles`
contains a difference of 0: the smallest deviance of a pair is never larger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.comparison import State, read_fixed
from apps.experiments.stats.data import ArmData, MetricSpec
from apps.experiments.stats.estimates import Estimate, estimate
from apps.experiments.stats.quantiles import deviance, order_statistics_of, value_rank
from apps.experiments.stats.sequential import boundary, read_sequential
from bench.bars import Bar, Rng, share

Floats = NDArray[np.float64]
Draw = Callable[[Rng, tuple[int, ...]], Floats]

LEVEL = 0.025
LOOKS = 100
UNITS = 6_000
SHARES = (0.5, 0.1)


@dataclass(frozen=True)
class Kind:
    """A distribution of values and its tested quantile, with the true value `truth`."""

    name: str
    draw: Draw
    quantile: float
    truth: float
    is_continuous: bool = False
    # The factor of a better arm's values.
    factor: float = 1.0


def _stars(rng: Rng, size: tuple[int, ...]) -> Floats:
    # Exactly half of the values are at most 3.
    return np.searchsorted([0.1, 0.2, 0.5, 0.8], rng.random(size), "right") + 1.0


def _two_modes(rng: Rng, size: tuple[int, ...]) -> Floats:
    return rng.normal(size=size) + 20.0 * (rng.random(size) < 0.5)


def _mixture(rng: Rng, size: tuple[int, ...]) -> Floats:
    return np.where(rng.random(size) < 0.9, rng.exponential(size=size), 50.0 + rng.random(size))


def _mostly_zero(rng: Rng, size: tuple[int, ...]) -> Floats:
    return np.where(rng.random(size) < 0.9, 0.0, np.round(rng.lognormal(3.0, 1.0, size), 2))


def _hardly_ever(rng: Rng, size: tuple[int, ...]) -> Floats:
    return np.where(rng.random(size) < 0.98, 7.0, np.floor(10.0 * rng.random(size)))


P90, P95 = 1.2815515655446004, 1.6448536269514722
KINDS = (
    Kind("stars 1 to 5, median", _stars, 0.5, 3.0),
    Kind("latency in 10-ms steps, p90", lambda rng, size: 10.0 * np.round(
        rng.lognormal(2.0, 0.5, size)), 0.9, 10.0 * round(math.exp(2.0 + 0.5 * P90))),
    Kind("Poisson(3), p99", lambda rng, size: rng.poisson(3.0, size).astype(float), 0.99, 8.0),
    Kind("Poisson(3), p90", lambda rng, size: rng.poisson(3.0, size).astype(float), 0.9, 5.0),
    Kind("score to 0.1, p75", lambda rng, size: np.round(
        rng.normal(0.0, 1.0, size), 1), 0.75, 0.7),
    Kind("two modes with a gap at the median", _two_modes, 0.5, 10.0),
    Kind("money to the cent, p95", lambda rng, size: np.round(
        rng.lognormal(1.0, 1.0, size), 2), 0.95, round(math.exp(1.0 + P95), 2)),
    Kind("nine in ten are 0, p90", _mostly_zero, 0.9, 0.0),
    Kind("98 in 100 alike, median", _hardly_ever, 0.5, 7.0),
    Kind("whole sessions, p95", lambda rng, size: rng.geometric(
        0.3, size).astype(float), 0.95, 9.0),
    Kind("lognormal, p90", lambda rng, size: rng.lognormal(
        0.0, 1.0, size), 0.9, math.exp(P90), True, 1.17),
    Kind("Pareto of index 1.5, p90", lambda rng, size: rng.pareto(
        1.5, size) + 1.0, 0.9, 10.0 ** (1.0 / 1.5), True, 1.19),
    Kind("exponential, median", lambda rng, size: rng.exponential(
        1.0, size), 0.5, math.log(2.0), True, 1.11),
    Kind("nine in ten exponential, the rest near 50, p90", _mixture, 0.9, 50.0),
)  # fmt: skip


def bars(rng: Rng, runs: int) -> Iterator[Bar]:
    """Yield bars on false positives (100 looks, and the end), coverage at one look, and power."""
    for kind in KINDS:
        for part in SHARES:
            early, final = false_wins(rng, kind, runs, part)
            at = f"{kind.name}, {part:.0%} treated"
            yield share(f"A/A, {LOOKS} looks: {at}", early, runs, LEVEL)
            yield share(f"A/A, the end: {at}", final, runs, LEVEL)
    for kind in KINDS:
        yield from coverage(rng, kind, runs)
    for kind in KINDS:
        if kind.is_continuous:
            yield from power(rng, kind, 2 * runs)


def compare(control: Floats, treatment: Floats, quantile: float) -> Estimate:
    """Return the product's comparison of two arms' values."""
    spec = MetricSpec("m", "primary", "quantile", quantile=quantile)
    arms = [
        ArmData(Comoments.empty(1), order_statistics_of(np.sort(values), quantile))
        for values in (control, treatment)
    ]
    return estimate(spec, arms[0], arms[1])


def false_wins(rng: Rng, kind: Kind, runs: int, part: float) -> tuple[int, int]:
    """Count the runs with any significant look, and those with a significant end."""
    values = kind.draw(rng, (runs, UNITS))
    treated = rng.random((runs, UNITS)) < part
    looks = np.linspace(UNITS // LOOKS, UNITS, LOOKS).astype(int)
    # The squared critical value of each look.
    allowed = [boundary(n, LEVEL, UNITS)[0] ** 2 for n in looks]
    at_truth = _deviances(kind, values, treated, looks)
    early = final = 0
    for run in range(runs):
        doubtful = looks[at_truth[run] > allowed]
        early += any(_wins(kind, values[run, :n], treated[run, :n]) for n in doubtful)
        # The normal critical value at half the level on each side.
        if at_truth[run, -1] > 2.2414**2:
            a, b = values[run][~treated[run]], values[run][treated[run]]
            final += read_fixed(compare(a, b, kind.quantile).difference, LEVEL).is_significant
    return early, final


def _wins(kind: Kind, values: Floats, treated: NDArray[np.bool_]) -> bool:
    estimated = compare(values[~treated], values[treated], kind.quantile)
    reading = read_sequential(
        estimated.difference,
        n=estimated.n,
        alpha=LEVEL,
        planned_units=UNITS,
        wait_reason=estimated.wait_reason,
    )
    return reading.is_significant


def _deviances(
    kind: Kind, values: Floats, treated: NDArray[np.bool_], looks: NDArray[np.int_]
) -> Floats:
    """Return both arms' deviance at the true quantile, by run and look."""
    total = np.zeros((len(values), len(looks)))
    for is_arm in (~treated, treated):
        n, below, upto = (
            np.cumsum(is_arm & condition, axis=1)[:, looks - 1]
            for condition in (True, values < kind.truth, values <= kind.truth)
        )
        nearest = np.clip(n * kind.quantile, below, upto)
        total += deviance(nearest, np.maximum(n, 1), kind.quantile)
    return total


def coverage(rng: Rng, kind: Kind, runs: int) -> Iterator[Bar]:
    """Yield bars on the coverage of the true difference 0 by the 95 % interval of one look."""
    covered = 0
    for _ in range(runs):
        a, b = kind.draw(rng, (1_500,)), kind.draw(rng, (1_500,))
        reading = read_fixed(compare(a, b, kind.quantile).difference, 0.05)
        low, high = reading.low, reading.high
        covered += reading.state is State.OK and low is not None and high is not None and (
            low <= 0.0 <= high
        )  # fmt: skip
    yield share(f"coverage of 95 %, at least: {kind.name}", covered, runs, 0.935, is_most=False)
    if kind.is_continuous:
        yield share(f"coverage of 95 %, at most: {kind.name}", covered, runs, 0.965)


def power(rng: Rng, kind: Kind, runs: int) -> Iterator[Bar]:
    """Yield bars on the power of one look and of the sequence, relative to Woodruff's test."""
    sizes = (3_000, 3_000)
    scores = np.zeros((runs, 2))
    for run in range(runs):
        a, b = (kind.draw(rng, (n,)) for n in sizes)
        b *= kind.factor
        scores[run] = compare(a, b, kind.quantile).difference.score, woodruff(a, b, kind.quantile)
    total = sum(sizes)
    for name, critical in (("one look", 2.2414), ("sequence", boundary(total, LEVEL, total)[0])):
        ours, theirs = (np.abs(scores) > critical).T
        baseline_wins = max(1, int(theirs.sum()))
        # Both methods use the same values, so that their errors are correlated.
        error = math.sqrt(max(1, int((ours != theirs).sum()))) / baseline_wins
        label = f"power over the former method's, {name}: {kind.name}"
        measured = ours.sum() / baseline_wins
        yield Bar(label, measured, error, 0.9, is_most=False, is_share=False)


def woodruff(control: Floats, treatment: Floats, quantile: float) -> float:
    """Return the score of the former test.

    It is the difference over the half-widths of the 95 % intervals of order statistics.
    """
    values, noise = [], 0.0
    for arm in (control, treatment):
        ordered, n = np.sort(arm), len(arm)
        reach = 1.959963984540054 * math.sqrt(n * quantile * (1.0 - quantile))
        low = max(1, math.floor(n * quantile - reach))
        high = min(n, math.ceil(n * quantile + reach) + 1)
        noise += ((ordered[high - 1] - ordered[low - 1]) / (2.0 * 1.959963984540054)) ** 2
        values.append(float(ordered[value_rank(n, quantile) - 1]))
    return (values[1] - values[0]) / math.sqrt(noise)
