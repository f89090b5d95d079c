"""A variance from a sum of squares lost all digits at n = 10^8 with a mean of 10^9.

Here moments are merged: 10^8 values around 10^9 with variance 1 have a computed variance of 1.
"""

from __future__ import annotations

import numpy as np
import pytest

from apps.experiments.stats.moments import Moments

MEAN, BLOCK, BLOCKS = 1e9, 100_000, 1_000


def test_the_variance_of_a_hundred_million_large_numbers_is_right() -> None:
    values = MEAN + np.random.default_rng(7).standard_normal(BLOCK)
    merged = block = Moments.of(values)
    for _ in range(BLOCKS - 1):
        merged = merged.merge(block)
    assert merged.n == 10**8
    assert merged.variance == pytest.approx(block.variance, rel=1e-4)
    assert merged.variance == pytest.approx(1.0, rel=0.02)
    # The same computed from sums of squares has no correct digit.
    squares = float(np.sum(values**2)) * BLOCKS
    naive = (squares - merged.n * merged.mean**2) / (merged.n - 1)
    assert abs(naive - 1.0) > 1.0
