"""Converts between standardised differences with a skewed distribution and normal deviations.

A shifted gamma distribution (Pearson's type III) matches three moments; permutation distributions
are approximated in the same way (Mielke and Berry 2007, Permutation Methods, section 2.3). With
skewness λ its cumulant function is −(4/λ²)·(ln(1 − λs/2) + λs/2), and the exponent of its tail
(Chernoff 1952; Daniels 1987) is r²/2 = (4/λ²)·(λz/2 − ln(1 + λz/2)). In the heavy tail |r| < |z|.
The light tail is treated as normal, which is conservative.
"""

from __future__ import annotations

import math

# Below this value the logarithm is imprecise, and the first terms of its series are exact enough.
SERIES_BELOW = 1e-4
# Below this product of skewness and deviation the correction is under the float precision.
NOTHING_BELOW = 1e-12
NEWTON_STEPS_MAX = 60


def normal_score(z: float, skewness: float) -> float:
    """Return r, the equivalent normal deviation: the signed root of twice the tail exponent at `z`.

    `skewness` is that of the standardised difference with the value `z`.
    """
    u = skewness * z / 2.0
    if u < NOTHING_BELOW:
        return z
    if not math.isfinite(u):
        # The tail is unknown.
        return 0.0
    return math.copysign(math.sqrt(8.0 * _excess(u)) / abs(skewness), z)


def skewed_critical_values(critical: float, skewness: float) -> tuple[float, float]:
    """Return the deviations that are equivalent to `critical`: (below, above), both positive.

    The interval is from the estimate minus `above` standard errors to the estimate plus `below`,
    since a large estimate is more likely to be too large. Inverse of `normal_score` on each side.
    """
    heavy = _inverse(critical, abs(skewness))
    return (critical, heavy) if skewness >= 0.0 else (heavy, critical)


def _excess(u: float) -> float:
    """Return u − ln(1 + u) for u ≥ 0."""
    return u * u * (0.5 - u / 3.0 + u * u / 4.0) if u < SERIES_BELOW else u - math.log1p(u)


def _inverse(critical: float, skewness: float) -> float:
    """Return the z ≥ critical of the heavy tail, by Newton's method from above the root."""
    if skewness * critical < NOTHING_BELOW:
        return critical
    target = (skewness * critical) ** 2 / 8.0
    if not math.isfinite(target):
        return math.inf
    u = math.sqrt(2.0 * target) + target
    for _ in range(NEWTON_STEPS_MAX):
        step = (_excess(u) - target) * (1.0 + u) / u
        u -= step
        if abs(step) <= 1e-14 * u:
            break
    return max(critical, 2.0 * u / skewness)
