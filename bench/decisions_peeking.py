"""Experiments under continuous looks: false positives and power of the sequential reading."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from apps.experiments.stats import sequential

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Rng = np.random.Generator
Sums = tuple[Array, Array]


@dataclass(frozen=True)
class Peeking:
    """An A/A or A/B experiment under continuous looks.

    `sizes` are the new units of (control, treatment) at each look.
    """

    name: str
    sizes: Sequence[tuple[int, int]]
    control: Callable[[Rng, int, int], Sums]
    treatment: Callable[[Rng, int, int], Sums]
    is_rate: bool = False


def peek(rng: Rng, case: Peeking, *, runs: int, alpha: float = 0.025) -> tuple[float, float]:
    """Return the share of runs that are ever significant: by the sequence, and by repeated z."""
    planned = sum(a + b for a, b in case.sizes)
    z_fixed = -float(ndtri(0.025))
    is_significant, is_z_significant = np.zeros(runs, dtype=bool), np.zeros(runs, dtype=bool)
    na = nb = 0
    sums = np.zeros((4, runs))
    for size_a, size_b in case.sizes:
        na, nb = na + size_a, nb + size_b
        sums += np.array((*case.control(rng, size_a, runs), *case.treatment(rng, size_b, runs)))
        z, is_ready = _z_and_readiness(sums, na, nb, is_rate=case.is_rate)
        is_significant |= is_ready & (np.abs(z) > sequential.boundary(na + nb, alpha, planned)[0])
        is_z_significant |= np.abs(z) > z_fixed
    return float(is_significant.mean()), float(is_z_significant.mean())


def _z_and_readiness(sums: Array, na: int, nb: int, *, is_rate: bool) -> tuple[Array, Flags]:
    """Return z of the difference, and the runs in which a sequential reading is possible."""
    mean_a, mean_b = sums[0] / na, sums[2] / nb
    enough = min(na, nb) >= sequential.UNITS_MIN
    if is_rate:
        pooled = (sums[0] + sums[2]) / (na + nb)
        variance = pooled * (1.0 - pooled) * (1.0 / na + 1.0 / nb)
        rarer = np.minimum(pooled, 1.0 - pooled) * (na + nb)
        is_ready = enough & (rarer >= sequential.EVENTS_MIN)
        is_ready &= min(na, nb) / (na + nb) * rarer >= sequential.EXPECTED_MIN
    else:
        variance = (sums[1] / na - mean_a**2) / (na - 1) + (sums[3] / nb - mean_b**2) / (nb - 1)
        is_ready = np.full(mean_a.shape, enough)
    error = np.sqrt(np.maximum(variance, 0.0))
    z = np.divide(mean_b - mean_a, error, out=np.zeros_like(error), where=error > 0.0)
    return z, is_ready


def normal(mean: float = 0.0) -> Callable[[Rng, int, int], Sums]:
    """Return a function that draws sums and sums of squares of standard normal values."""

    def arm(rng: Rng, n: int, runs: int) -> Sums:
        total = rng.normal(n * mean, math.sqrt(n), runs)
        spread = rng.chisquare(n - 1, runs) if n > 1 else np.zeros(runs)
        return total, spread + total**2 / n

    return arm


def rate(p: float) -> Callable[[Rng, int, int], Sums]:
    def arm(rng: Rng, n: int, runs: int) -> Sums:
        events = rng.binomial(n, p, runs).astype(np.float64)
        return events, events

    return arm


def lognormal(sigma: float) -> Callable[[Rng, int, int], Sums]:
    def arm(rng: Rng, n: int, runs: int) -> Sums:
        values = np.exp(sigma * rng.standard_normal((runs, n)))
        return values.sum(axis=-1), (values**2).sum(axis=-1)

    return arm


def even_looks(looks: int, size_a: int, size_b: int) -> list[tuple[int, int]]:
    return [(size_a, size_b)] * looks


def log_looks(looks: int, first: int, last: int) -> list[tuple[int, int]]:
    ends = np.unique(np.geomspace(first, last, looks).astype(int))
    return [(int(n), int(n)) for n in np.diff(ends, prepend=0)]


def peeking_cases() -> Iterator[Peeking]:
    dense = [(2, 2), *even_looks(999, 1, 1)]
    for p in (0.10, 0.005):
        yield Peeking(f"A/A, rate {p:.1%}", even_looks(500, 100, 100), rate(p), rate(p), True)
    split = even_looks(500, 190, 10)
    yield Peeking("A/A, rate 2% at 95:5", split, rate(0.02), rate(0.02), True)
    yield Peeking("A/A, normal means", even_looks(500, 20, 20), normal(), normal())
    heavy = lognormal(2.0)
    yield Peeking("A/A, lognormal σ = 2", even_looks(250, 20, 20), heavy, heavy)
    yield Peeking("A/A, normal, every pair to 2,000 units", dense, normal(), normal())
    far = log_looks(300, 50, 1_000_000)
    yield Peeking("A/A, normal, log-spaced looks to 2,000,000", far, normal(), normal())
    yield Peeking("A/B, rate 10% to 12%", even_looks(100, 77, 77), rate(0.10), rate(0.12), True)
    yield Peeking("A/B, normal, 0.1 σ", even_looks(100, 31, 31), normal(), normal(0.1))
