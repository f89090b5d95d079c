"""The Mann-Whitney test from counts per bin: do values of one arm tend to be larger?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr

from apps.experiments.stats.comparison import P_MIN


def mann_whitney_p(control: Sequence[int], treatment: Sequence[int]) -> float | None:
    """Return the two-sided p by the normal approximation with ties (Lehmann 1975, section 1.4).

    All values of a bin count as tied, which keeps the test valid and costs little power. None if an
    arm is empty or all values are in one bin.
    """
    a, b = (np.asarray(counts, dtype=np.float64) for counts in (control, treatment))
    n_a, n_b = float(a.sum()), float(b.sum())
    if n_a == 0.0 or n_b == 0.0:
        return None
    below = np.concatenate([[0.0], np.cumsum(a)[:-1]])
    u = float((b * (below + a / 2.0)).sum())
    n = n_a + n_b
    ties = a + b
    spread = float((ties * (ties - 1.0) * (ties + 1.0)).sum())
    variance = n_a * n_b / 12.0 * ((n + 1.0) - spread / (n * (n - 1.0)))
    if variance <= 0.0:
        return None
    z = abs(u - n_a * n_b / 2.0) / np.sqrt(variance)
    return max(P_MIN, min(1.0, 2.0 * float(ndtr(-z))))
