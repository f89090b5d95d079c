"""How far out a standardised difference lies where its distribution is skewed.

Three moments are matched by a shifted gamma distribution (Pearson's type III), which is also how
permutation distributions are approximated (Mielke and Berry 2007, Permutation Methods, section
2.3). With skewness λ its cumulant function is −(4/λ²)·(ln(1 − λs/2) + λs/2), and the exponent of
its tail (Chernoff 1952; Daniels 1987) is r²/2 = (4/λ²)·(λz/2 − ln(1 + λz/2)). Where the tail is the
heavy one, |r| < |z|; the light tail is read as a normal one, which errs on the safe side.
"""

from __future__ import annotations

import math

# Below this the logarithm's own digits are too few, and the first terms of its series exact enough.
SERIES_BELOW = 1e-4
# A skewness times a deviation below this changes no digit.
NOTHING_BELOW = 1e-12
NEWTON_STEPS_MAX = 60


def normal_score(z: float, skewness: float) -> float:
    """Return r, to be read as a normal z: the signed root of twice the tail's exponent at `z`.

    `skewness` is that of the standardised difference whose value is `z`.
    """
    u = skewness * z / 2.0
    if u < NOTHING_BELOW:
        return z
    if not math.isfinite(u):
        # Nothing is known of the tail.
        return 0.0
    return math.copysign(math.sqrt(8.0 * _excess(u)) / abs(skewness), z)


def reaches(critical: float, skewness: float) -> tuple[float, float]:
    """Return what lies `critical` normal deviations out: (below, above), both positive.

    An interval is from the estimate minus `above` standard errors to the estimate plus `below`, as
    a large estimate is one that has strayed upwards. Inverse of `normal_score` on each side.
    """
    heavy = _inverse(critical, abs(skewness))
    return (critical, heavy) if skewness >= 0.0 else (heavy, critical)


def _excess(u: float) -> float:
    """Return u − ln(1 + u) for u ≥ 0."""
    return u * u * (0.5 - u / 3.0 + u * u / 4.0) if u < SERIES_BELOW else u - math.log1p(u)


def _inverse(critical: float, skewness: float) -> float:
    """Return the z ≥ critical of the heavy tail, by Newton's method from above its root."""
    if skewness * critical < NOTHING_BELOW:
        return critical
    wanted = (skewness * critical) ** 2 / 8.0
    if not math.isfinite(wanted):
        return math.inf
    u = math.sqrt(2.0 * wanted) + wanted
    for _ in range(NEWTON_STEPS_MAX):
        step = (_excess(u) - wanted) * (1.0 + u) / u
        u -= step
        if abs(step) <= 1e-14 * u:
            break
    return max(critical, 2.0 * u / skewness)
