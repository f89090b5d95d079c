"""Count, means and co-moments of several values per unit, as ratios and CUPED need them.

As in `moments`, sums of squares or products are never kept, and two samples merge exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations_with_replacement, permutations

import numpy as np
from numpy.typing import NDArray

from apps.experiments.stats.moments import Moments


@dataclass(frozen=True)
class Extremes:
    """Of the units' first values: the number that are not 0, the minimum and the maximum."""

    nonzero: int
    low: float
    high: float

    def merge(self, other: Extremes) -> Extremes:
        low, high = min(self.low, other.low), max(self.high, other.high)
        return Extremes(self.nonzero + other.nonzero, low, high)


@dataclass(frozen=True)
class Comoments:
    """Co-moments of k values per unit.

    `means` has k numbers. `products` is the upper triangle of the symmetric matrix Σ(a − ā)(b − b̄),
    row by row: k(k + 1)/2 numbers. `thirds` are Σ(a − ā)(b − b̄)(c − c̄) for each triple of values,
    in the order of `triples(k)`. If third moments are unknown, `thirds` is empty and `extremes` is
    None.
    """

    n: int
    means: tuple[float, ...]
    products: tuple[float, ...]
    thirds: tuple[float, ...] = ()
    extremes: Extremes | None = None

    @classmethod
    def empty(cls, k: int) -> Comoments:
        return cls(0, (0.0,) * k, (0.0,) * (k * (k + 1) // 2), (0.0,) * len(triples(k)))

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]] | NDArray[np.float64]) -> Comoments:
        """Compute from an n × k array in two passes.

        Raises ValueError for NaN or infinite values.
        """
        array = np.asarray(rows, dtype=np.float64)
        if array.ndim != 2:
            raise ValueError("rows must be an n × k array")
        if array.shape[0] == 0:
            return cls.empty(array.shape[1])
        if not np.isfinite(array).all():
            raise ValueError("outcomes must be finite numbers")
        shifted = array - array[0]
        mean_shifted = shifted.mean(axis=0)
        deviations = shifted - mean_shifted
        products = deviations.T @ deviations
        upper = products[np.triu_indices(array.shape[1])]
        means = (array[0] + mean_shifted).tolist()
        with np.errstate(over="ignore", invalid="ignore"):
            thirds = [
                float((deviations[:, i] * deviations[:, j] * deviations[:, k]).sum())
                for i, j, k in triples(array.shape[1])
            ]
        first = array[:, 0]
        extremes = Extremes(int(np.count_nonzero(first)), float(first.min()), float(first.max()))
        n = int(array.shape[0])
        return cls(n, tuple(means), tuple(upper.tolist()), tuple(thirds), extremes)

    def merge(self, other: Comoments) -> Comoments:
        """Merge two samples (Chan, Golub and LeVeque 1979; for products, Pébay 2008)."""
        if self.n == 0 or other.n == 0:
            return other if self.n == 0 else self
        n = self.n + other.n
        deltas = [b - a for a, b in zip(self.means, other.means, strict=True)]
        means = tuple(
            a + delta * (other.n / n) for a, delta in zip(self.means, deltas, strict=True)
        )
        factor = self.n * (other.n / n)
        pairs = [
            deltas[i] * deltas[j] * factor
            for i in range(len(deltas))
            for j in range(i, len(deltas))
        ]
        products = tuple(
            a + b + c for a, b, c in zip(self.products, other.products, pairs, strict=True)
        )
        extremes = self.extremes and other.extremes and self.extremes.merge(other.extremes)
        return Comoments(n, means, products, self._merged_thirds(other, deltas), extremes)

    def _merged_thirds(self, other: Comoments, deltas: Sequence[float]) -> tuple[float, ...]:
        """Merge the third co-moments of two samples (Pébay 2008, for three different values)."""
        if not (self.thirds and other.thirds):
            return ()
        share, other_share = self.n / (self.n + other.n), other.n / (self.n + other.n)
        factor = self.n * other_share * (share - other_share)
        thirds = []
        for a, b, (i, j, k) in zip(self.thirds, other.thirds, triples(len(deltas)), strict=True):
            moved = deltas[i] * deltas[j] * deltas[k] * factor
            for x, y, z in ((i, j, k), (j, i, k), (k, i, j)):
                moved += deltas[x] * (
                    share * other.product(y, z) - other_share * self.product(y, z)
                )
            thirds.append(a + b + moved)
        return tuple(thirds)

    def with_constants(self, constants: Sequence[float | None]) -> Comoments:
        """Set the values that are the same for every unit to exact constants without variance.

        `constants` has None for values that vary. The sum of a constant such as 0.3 is rounded,
        which would otherwise show as a small variance.
        """
        if self.n == 0 or all(value is None for value in constants):
            return self
        fixed = [value is not None for value in constants]
        means = zip(self.means, constants, strict=True)
        places = ((i, j) for i in range(len(fixed)) for j in range(i, len(fixed)))
        return Comoments(
            self.n,
            tuple(mean if value is None else value for mean, value in means),
            tuple(0.0 if fixed[i] or fixed[j] else self.product(i, j) for i, j in places),
            tuple(
                0.0 if any(fixed[i] for i in three) else third
                for three, third in zip(triples(len(fixed)), self.thirds, strict=False)
            ),
            self.extremes,
        )

    def product(self, i: int, j: int) -> float:
        """Σ(a − ā)(b − b̄) of the i-th and the j-th value."""
        i, j = min(i, j), max(i, j)
        k = len(self.means)
        return self.products[i * k - i * (i - 1) // 2 + j - i]

    def linear_square(self, weights: Sequence[float]) -> float:
        """Σ(v − v̄)² of v = Σ wᵢ·valueᵢ; values beyond the weights have weight 0."""
        total = sum(
            a * b * self.product(i, j) for i, a in enumerate(weights) for j, b in enumerate(weights)
        )
        return max(0.0, total)

    def linear_cube(self, weights: Sequence[float]) -> float | None:
        """Σ(v − v̄)³ of v = Σ wᵢ·valueᵢ; None where third co-moments are not known."""
        if not self.thirds:
            return None
        k, total = len(self.means), 0.0
        w = [*weights, *[0.0] * (k - len(weights))]
        for (i, j, m), third in zip(triples(k), self.thirds, strict=True):
            if (weight := w[i] * w[j] * w[m]) != 0.0:
                total += len(set(permutations((i, j, m)))) * weight * third
        return total

    def covariance(self, i: int, j: int) -> float | None:
        """The unbiased sample covariance; None below two units."""
        return self.product(i, j) / (self.n - 1) if self.n >= 2 else None

    def moments(self, i: int = 0) -> Moments:
        return Moments(self.n, self.means[i], self.product(i, i))


@lru_cache(maxsize=16)
def triples(k: int) -> tuple[tuple[int, int, int], ...]:
    """Return the indices of each triple of k values, with repetition: i ≤ j ≤ m."""
    return tuple((i, j, m) for i, j, m in combinations_with_replacement(range(k), 3))


def central_thirds(
    n: int, means: Sequence[float], products: Sequence[float], sums: Sequence[float]
) -> tuple[float, ...]:
    """Return the third co-moments about the means, from `sums` Σabc about the origin of `means`.

    Σabc = Σ(a − ā)(b − b̄)(c − c̄) + ā·P_bc + b̄·P_ac + c̄·P_ab + n·āb̄c̄, with P the `products` as in
    `Comoments`. If mean/√variance is below 10⁵/√n, which `level_moments` ensures, the rounding
    error of a skewness is below 0.1/√n.
    """
    moments = Comoments(n, tuple(means), tuple(products))
    # A constant has no skewness; its sums would show their rounding errors.
    fixed = [moments.product(i, i) == 0.0 for i in range(len(means))]
    thirds = []
    for (i, j, k), total in zip(triples(len(means)), sums, strict=True):
        if fixed[i] or fixed[j] or fixed[k]:
            thirds.append(0.0)
            continue
        a, b, c = means[i], means[j], means[k]
        crossed = a * moments.product(j, k) + b * moments.product(i, k) + c * moments.product(i, j)
        thirds.append(total - crossed - n * a * b * c)
    return tuple(thirds)
