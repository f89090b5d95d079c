"""Rare and skewed values in a small arm: false verdicts in A/A tests, and power.

numpy draws and sums the values. The product's own functions decide at each look where Welch's test
is significant: the product's standard error is never smaller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.experiments.stats.comoments import Comoments, Extremes, central_thirds, triples
from apps.experiments.stats.comparison import read_fixed
from apps.experiments.stats.data import MetricSpec
from apps.experiments.stats.estimates import compare
from apps.experiments.stats.sequential import boundary, read_sequential
from bench.bars import Bar, Rng, share

Floats = NDArray[np.float64]
# Draws runs × units rows of one metric's values: y, or y and d.
Draw = Callable[[Rng, int], Floats]

LOOKS, EACH = 100, 100
UNITS = LOOKS * EACH
SHARES = (0.5, 0.2, 0.1, 0.05, 0.01)
# Each reading has half of an experiment's 5 %.
ALPHA = 0.025
BATCH = 50


def _lognormal(sigma: float) -> Draw:
    return lambda rng, runs: rng.lognormal(0.0, sigma, (runs, UNITS, 1))


def _exponential(rng: Rng, runs: int) -> Floats:
    return rng.standard_exponential((runs, UNITS, 1))


def _normal(rng: Rng, runs: int) -> Floats:
    return rng.normal(10.0, 3.0, (runs, UNITS, 1))


def _spend(buyers: float) -> Draw:
    def draw(rng: Rng, runs: int) -> Floats:
        values = np.zeros(runs * UNITS)
        bought = np.flatnonzero(rng.random(values.size) < buyers)
        values[bought] = rng.lognormal(3.0, 1.0, bought.size)
        return values.reshape(runs, UNITS, 1)

    return draw


def _ratio(top: float, bottom: float) -> Draw:
    return lambda rng, runs: np.exp(rng.normal(0.0, (top, bottom), (runs, UNITS, 2)))


KINDS: dict[str, Draw] = {
    "lognormal, σ = 1": _lognormal(1.0),
    "lognormal, σ = 2": _lognormal(2.0),
    "exponential": _exponential,
    "spend, 0.5 % buyers": _spend(0.005),
    "spend, 1 % buyers": _spend(0.01),
    "spend, 3 % buyers": _spend(0.03),
    "spend, 10 % buyers": _spend(0.1),
    "ratio, σ = 1 over 1": _ratio(1.0, 1.0),
    "ratio, σ = 2 over 0.5": _ratio(2.0, 0.5),
}
# The factor of the treatment's values, which Welch's test detects in most runs.
EFFECTS: dict[str, tuple[Draw, float]] = {
    "normal": (_normal, 1.025),
    "exponential": (_exponential, 1.08),
    "lognormal, σ = 1": (_lognormal(1.0), 1.10),
    "lognormal, σ = 2": (_lognormal(2.0), 1.8),
    "spend, 3 % buyers": (_spend(0.03), 1.8),
    "spend, 10 % buyers": (_spend(0.1), 1.3),
    "ratio, σ = 1 over 1": (_ratio(1.0, 1.0), 1.13),
}


def bars(rng: Rng, runs: int) -> Iterator[Bar]:
    """Yield bars on false verdicts by kind of value and share, and on power."""
    for kind, draw in KINDS.items():
        ever, at_end = _false_verdicts(rng, draw, runs)
        for small, hits in zip(SHARES, ever, strict=True):
            arms = f"{100 * (1 - small):.0f}:{100 * small:.0f}"
            yield share(f"A/A, {kind}, {arms}, at any of {LOOKS} looks", hits, runs, ALPHA)
        # Equal arms have the plain Welch test with its exact level.
        unequal = at_end[1:]
        name = f"A/A, {kind}, 80:20 to 99:1, once at the planned end"
        yield share(name, sum(unequal), runs * len(unequal), ALPHA)
    for kind, (draw, effect) in EFFECTS.items():
        yield _power(rng, kind, draw, effect, runs)


def _false_verdicts(rng: Rng, draw: Draw, runs: int) -> tuple[list[int], list[int]]:
    """Return the runs with a false verdict by share: at any look, and at the planned end."""
    ever, at_end = [0] * len(SHARES), [0] * len(SHARES)
    for size in _batches(runs):
        values = draw(rng, size)
        for i, small in enumerate(SHARES):
            sums = _summed(values, _treated(rng, size, small))
            for run in range(size):
                # In an A/A test it does not matter which arm is small.
                ever[i] += _is_ever(sums, run, np.flatnonzero(sums.may_be[run]))
                at_end[i] += _is_at_end(sums, run)
    return ever, at_end


def _power(rng: Rng, kind: str, draw: Draw, effect: float, runs: int) -> Bar:
    """Return the power relative to Welch's test from 100 units on, the method without skewness."""
    ours = theirs = differ = 0
    for size in _batches(runs):
        values, treated = draw(rng, size), _treated(rng, size, 0.5)
        values[..., 0] = np.where(treated, effect * values[..., 0], values[..., 0])
        sums = _summed(values, treated)
        for run in range(size):
            looks = np.flatnonzero(sums.may_be[run])
            mine, before = _is_ever(sums, run, looks), bool(looks.size)
            ours, theirs, differ = ours + mine, theirs + before, differ + (mine != before)
    error = math.sqrt(differ + 1.0) / max(theirs, 1)
    name = f"power at 50:50 beside Welch's, {kind}, × {effect:g}"
    return Bar(name, ours / max(theirs, 1), error, 0.95, is_most=False, is_share=False)


def _batches(runs: int) -> Iterator[int]:
    yield from [BATCH] * (runs // BATCH) + ([runs % BATCH] if runs % BATCH else [])


# --- sums ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sums:
    """The cumulative sums by run, arm and look. `may_be`: Welch's test is significant there."""

    counts: Floats
    others: Floats
    powers: dict[tuple[int, ...], Floats]
    width: int
    may_be: NDArray[np.bool_]

    def arm(self, run: int, which: int, look: int) -> Comoments:
        """Return an arm's co-moments as a source does, but without the maximum of the values."""
        at, k = (run, which, look), self.width
        n = int(self.counts[at])
        means = tuple(float(self.powers[(i,)][at]) / max(n, 1) for i in range(k))
        products = tuple(
            float(self.powers[i, j][at]) - n * means[i] * means[j]
            for i in range(k)
            for j in range(i, k)
        )
        sums = [float(self.powers[three][at]) for three in triples(k)]
        thirds = central_thirds(n, means, products, sums)
        return Comoments(n, means, products, thirds, Extremes(int(self.others[at]), 0.0, math.inf))


def _treated(rng: Rng, runs: int, small: float) -> NDArray[np.bool_]:
    """Return the treated units: the first ones of each look, since units are exchangeable."""
    many = rng.binomial(EACH, small, (runs, LOOKS, 1))
    return (np.arange(EACH) < many).reshape(runs, UNITS)


def _summed(values: Floats, treated: NDArray[np.bool_]) -> _Sums:
    width = values.shape[2]

    def so_far(each: Floats) -> Floats:
        whole = each.reshape(len(each), LOOKS, EACH).sum(axis=2).cumsum(axis=1)
        ours = (each * treated).reshape(len(each), LOOKS, EACH).sum(axis=2).cumsum(axis=1)
        return np.stack([whole - ours, ours], axis=1)

    powers: dict[tuple[int, ...], Floats] = {}
    columns = [values[..., i] for i in range(width)]
    for i in range(width):
        powers[(i,)] = so_far(columns[i])
        for j in range(i, width):
            powers[i, j] = so_far(columns[i] * columns[j])
    for i, j, k in triples(width):
        powers[i, j, k] = so_far(columns[i] * columns[j] * columns[k])
    counts = so_far(np.ones_like(columns[0]))
    others = so_far((columns[0] != 0.0).astype(np.float64))
    return _Sums(counts, others, powers, width, _may_be(counts, powers, width))


def _may_be(counts: Floats, powers: dict[tuple[int, ...], Floats], width: int) -> NDArray[np.bool_]:
    with np.errstate(all="ignore"):
        means = [powers[(i,)] / counts for i in range(width)]

        def centred(i: int, j: int) -> Floats:
            return np.asarray(powers[i, j] / counts - means[i] * means[j])

        level, variance = means[0], centred(0, 0)
        if width == 2:
            level = means[0] / means[1]
            variance = variance - 2 * level * centred(0, 1) + level**2 * centred(1, 1)
            variance = variance / means[1] ** 2
        noise = (variance / (counts - 1)).sum(axis=1)
        whole = counts.sum(axis=1)
        critical = np.array([boundary(int(n), ALPHA, UNITS)[0] for n in whole[0]])
        beyond = (level[:, 1] - level[:, 0]) ** 2 > 0.999 * critical**2 * noise
    return np.asarray(beyond & (counts.min(axis=1) >= 100))


# --- verdicts ------------------------------------------------------------------------------------


def _spec(sums: _Sums) -> MetricSpec:
    return MetricSpec("m", "primary", "ratio" if sums.width == 2 else "mean")


def _is_ever(sums: _Sums, run: int, looks: NDArray[np.int64]) -> bool:
    for look in looks:
        estimated = compare(_spec(sums), sums.arm(run, 0, look), sums.arm(run, 1, look))
        reading = read_sequential(
            estimated.difference,
            n=estimated.n,
            alpha=ALPHA,
            planned_units=UNITS,
            wait_reason=estimated.wait_reason,
        )
        if reading.is_significant:
            return True
    return False


def _is_at_end(sums: _Sums, run: int) -> bool:
    estimated = compare(_spec(sums), sums.arm(run, 0, LOOKS - 1), sums.arm(run, 1, LOOKS - 1))
    return read_fixed(estimated.difference, ALPHA).is_significant
