"""Count, means and co-moments of several values per unit: what ratios and CUPED need.

As in `moments`, sums of squares or products are never kept, and two samples merge exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.experiments.stats.moments import Moments


@dataclass(frozen=True)
class Comoments:
    """Of k values per unit: `means` has k numbers, `products` the upper triangle of the symmetric
    matrix Σ(a − ā)(b − b̄), row by row: k(k + 1)/2 numbers.
    """

    n: int
    means: tuple[float, ...]
    products: tuple[float, ...]

    @classmethod
    def empty(cls, k: int) -> Comoments:
        return cls(0, (0.0,) * k, (0.0,) * (k * (k + 1) // 2))

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]] | NDArray[np.float64]) -> Comoments:
        """Of an n × k array, by two passes. Raises ValueError for NaN or infinite values."""
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
        return cls(int(array.shape[0]), tuple(means), tuple(upper.tolist()))

    def merge(self, other: Comoments) -> Comoments:
        """Of both samples together (Chan, Golub and LeVeque 1979; for products, Pébay 2008)."""
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
        return Comoments(n, means, products)

    def with_constants(self, constants: Sequence[float | None]) -> Comoments:
        """With the values that are the same for every unit, None for others: they do not vary.

        Sums of such a value as 0.3 are rounded, and would make of it a spread that is not there.
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
        )

    def product(self, i: int, j: int) -> float:
        """Σ(a − ā)(b − b̄) of the i-th and the j-th value."""
        i, j = min(i, j), max(i, j)
        k = len(self.means)
        return self.products[i * k - i * (i - 1) // 2 + j - i]

    def covariance(self, i: int, j: int) -> float | None:
        """The unbiased sample covariance; None below two units."""
        return self.product(i, j) / (self.n - 1) if self.n >= 2 else None

    def moments(self, i: int = 0) -> Moments:
        return Moments(self.n, self.means[i], self.product(i, i))
