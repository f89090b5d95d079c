"""Count, mean and M2 (the sum of squared deviations from the mean), sufficient for tests of means.

Sums of squares are never kept: at n = 10^8 and mean 10^9 they give variance 172 or 0 instead of 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Moments:
    """`m2` is Σ(x − mean)², in the square of the outcome's unit."""

    n: int = 0
    mean: float = 0.0
    m2: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float] | NDArray[np.float64]) -> Moments:
        """Compute the moments of a batch in two passes.

        Raises ValueError for NaN or infinite values.
        """
        array = np.asarray(values, dtype=np.float64)
        if array.size == 0:
            return cls()
        if not np.isfinite(array).all():
            raise ValueError("outcomes must be finite numbers")
        # The shift keeps the sum small if the mean is far larger than the standard deviation.
        shifted = array - array[0]
        mean_shifted = float(shifted.mean())
        deviations = shifted - mean_shifted
        m2 = float(np.dot(deviations, deviations))
        return cls(int(array.size), float(array[0]) + mean_shifted, m2)

    def add(self, value: float) -> Moments:
        """Add one outcome (Welford 1962). Raises ValueError for NaN or an infinite value."""
        if not math.isfinite(value):
            raise ValueError("outcomes must be finite numbers")
        n = self.n + 1
        delta = value - self.mean
        mean = self.mean + delta / n
        return Moments(n, mean, self.m2 + delta * (value - mean))

    def merge(self, other: Moments) -> Moments:
        """Merge two samples (Chan, Golub and LeVeque 1979)."""
        if self.n == 0 or other.n == 0:
            return other if self.n == 0 else self
        n = self.n + other.n
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.n / n)
        m2 = self.m2 + other.m2 + delta * delta * (self.n * (other.n / n))
        return Moments(n, mean, m2)

    @property
    def variance(self) -> float | None:
        """The unbiased sample variance M2/(n − 1); None with fewer than two values."""
        return self.m2 / (self.n - 1) if self.n >= 2 else None
