"""Sample size, minimum detectable effect and power of an experiment.

All functions consider two arms: control and the treatment with the smallest weight. With more
treatments, each is read at its share of the level, as in a report before Holm's procedure relaxes
any. `units` counts all arms together. The reading at the planned end is a fixed-horizon test; the
reading at any time is the confidence sequence of `stats.sequential`, which needs more units.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from apps.experiments.stats.sequential import boundary
from apps.experiments.stats.skewness import SKEWNESS_MAX

Floats = npt.NDArray[np.float64]

UNITS_MAX = 10**12
# With more degrees of freedom, Student's t equals the normal distribution to six digits.
NORMAL_FROM = 20_000
# The number of times at which the density of paths is computed.
TIMES = 48
# The number of evenly spread looks that the sequential sample size assumes. Fewer looks give less
# power: 50 looks and continuous looks differ by 2.5 points, and this number lies in the middle.
LOOKS = 125
# The mean overshoot of a path over the boundary at the first look beyond it, in standard deviations
# of a step: −ζ(1/2)/√(2π) (Chernoff 1965; Siegmund 1985, section 10).
OVERSHOOT = 0.5826
CELLS = 240
# The lower end of the grid below 0, in standard deviations of the path.
BELOW = 9.0


@dataclass(frozen=True)
class Baseline:
    """The expected values of control: a rate, or the mean and standard deviation of units' values.

    `sd` is None for a rate, which determines it. For a ratio it is that of the linearised values,
    √n times the standard error. `skewness` is that of units' values, 0 if unknown.
    """

    mean: float
    sd: float | None = None
    skewness: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean):
            raise ValueError("the baseline's mean must be a finite number")
        if self.sd is None and not 0.0 < self.mean < 1.0:
            raise ValueError(f"the baseline rate must be between 0 and 1, not {self.mean:g}")
        if self.sd is not None and not (math.isfinite(self.sd) and self.sd > 0.0):
            raise ValueError(f"the standard deviation (sd) must be above 0, not {self.sd:g}")

    def variance_at(self, mean: float) -> float:
        """Return the variance of a unit's value if the mean is `mean`."""
        return mean * (1.0 - mean) if self.sd is None else self.sd**2


@dataclass(frozen=True)
class Design:
    """The design of a test: shares of the units, level and power.

    `shares` are those of control and of the smallest treatment, relative to all units. `level` is
    the two-sided error rate of one reading of one treatment.
    """

    shares: tuple[float, float]
    level: float
    power: float = 0.8

    def __post_init__(self) -> None:
        if not all(0.0 < share < 1.0 for share in self.shares) or sum(self.shares) > 1.0 + 1e-9:
            raise ValueError("control and the treatment each need a share of the units")
        if not 0.0 < self.level < 1.0:
            raise ValueError("the error rate (alpha) must be between 0 and 1")
        if not self.level < self.power < 1.0:
            raise ValueError("the power must be between the error rate (alpha) and 1")


def level_of(alpha: float, arms: int) -> float:
    """Return the level of one reading of one treatment: half of alpha over all treatments."""
    return alpha / 2.0 / max(1, arms - 1)


def units_needed(
    baseline: Baseline, design: Design, effect: float, *, is_sequential: bool = False
) -> int | None:
    """Return the units needed to detect the absolute `effect` with the design's power.

    None if more than 10¹². Raises ValueError if the effect is 0 or takes a rate beyond 0 or 1.
    """
    _check_effect(baseline, effect)
    if is_sequential:
        shift = _shift_needed(design.level, round(sum(design.shares), 6), design.power)
        units = math.ceil(shift**2 * _variance(baseline, design, effect) / effect**2)
        return units if units <= UNITS_MAX else None
    return _smallest(lambda units: _fixed_power(baseline, design, effect, units) >= design.power)


def power_at(
    baseline: Baseline, design: Design, effect: float, units: int, *, is_sequential: bool = False
) -> float:
    """Return the power to detect `effect` with this number of units. Raises as `units_needed`."""
    _check_effect(baseline, effect)
    power = _sequential_power if is_sequential else _fixed_power
    return power(baseline, design, effect, units)


def detectable(
    baseline: Baseline, design: Design, units: int, *, is_sequential: bool = False
) -> float | None:
    """Return the minimum detectable effect, an absolute increase, with this number of units.

    None if no increase is large enough, since a rate ends at 1.
    """
    if is_sequential:
        needed = _shift_needed(design.level, round(sum(design.shares), 6), design.power)

    def finds(effect: float) -> bool:
        if is_sequential:
            return _shift(baseline, design, effect, units) >= needed
        return _fixed_power(baseline, design, effect, units) >= design.power

    high = 1.0 - baseline.mean if baseline.sd is None else baseline.sd * 1e3
    if units < 4 or not finds(high):
        return None
    low = 0.0
    for _ in range(50):
        middle = (low + high) / 2.0
        low, high = (low, middle) if finds(middle) else (middle, high)
    return high


def margin_units(baseline: Baseline, design: Design, margin: float) -> int | None:
    """Return the units needed to show that an arm equal to control is not worse by `margin`.

    One-sided: n·w₀w₁/(w₀ + w₁) = (z₁₋α + z_power)²·σ²/margin² (Julious 2004). Raises ValueError
    for a margin that is not above 0.
    """
    if not (math.isfinite(margin) and margin > 0.0):
        raise ValueError(f"the margin must be above 0, not {margin:g}")
    reach = float(ndtri(1.0 - design.level) + ndtri(design.power))
    variance = baseline.variance_at(baseline.mean) * sum(1.0 / share for share in design.shares)
    units = math.ceil(reach**2 * variance / margin**2)
    return units if units <= UNITS_MAX else None


def units_carried(baseline: Baseline, design: Design) -> int:
    """Return the minimum number of units at which skewness permits a reading.

    It follows from λ = skewness·|n₀ − n₁|/√(n₀·n₁·(n₀ + n₁)), as in `stats.skewness`. Equal arms
    have no minimum.
    """
    first, second = design.shares
    if baseline.sd is None:
        return 0
    uneven = (baseline.skewness * (first - second) / SKEWNESS_MAX) ** 2
    return math.ceil(min(UNITS_MAX, uneven / (first * second * (first + second))))


# --- at the planned end --------------------------------------------------------------------------


def _fixed_power(baseline: Baseline, design: Design, effect: float, units: int) -> float:
    if baseline.sd is None:
        return _power_of_rates(baseline.mean, design, effect, units)
    control, treatment = (units * share for share in design.shares)
    freedom = control + treatment - 2.0
    if freedom <= 0.0:
        return 0.0
    shift = abs(effect) / (baseline.sd * math.sqrt(1.0 / control + 1.0 / treatment))
    if freedom > NORMAL_FROM:
        critical = float(ndtri(1.0 - design.level / 2.0))
        return float(ndtr(shift - critical) + ndtr(-shift - critical))
    # The import takes seconds, so it is not made at process start.
    from scipy.stats import nct, t

    critical = float(t.isf(design.level / 2.0, freedom))
    # The power on the wrong side; nct's own lower tail is imprecise far out.
    below = float(nct.sf(critical, freedom, -shift))
    return float(nct.sf(critical, freedom, shift)) + below


def _power_of_rates(rate: float, design: Design, effect: float, units: int) -> float:
    """Return the power of the pooled z test, with the unpooled variance of the alternative.


    Source: Fleiss 1981, chapter 3. 10 % against 12 % needs 3,841 units in each of two arms, at a
    level of 5 % and a power of 80 %.
    """
    first, second = design.shares
    treatment_rate = rate + effect
    pooled = (first * rate + second * treatment_rate) / (first + second)
    null_error = math.sqrt(pooled * (1.0 - pooled) * (1.0 / first + 1.0 / second) / units)
    alternative_error = math.sqrt(
        (rate * (1.0 - rate) / first + treatment_rate * (1.0 - treatment_rate) / second) / units
    )
    if alternative_error == 0.0:
        return 1.0
    critical = float(ndtri(1.0 - design.level / 2.0)) * null_error
    return float(
        ndtr((abs(effect) - critical) / alternative_error)
        + ndtr((-abs(effect) - critical) / alternative_error)
    )


# --- at any time until the planned end -----------------------------------------------------------


def _sequential_power(baseline: Baseline, design: Design, effect: float, units: int) -> float:
    """Return the probability that the sequence, tuned to `units`, excludes 0 at any look so far."""
    shift = _shift(baseline, design, effect, units)
    return _crossing(round(min(shift, 50.0), 4), design.level, round(sum(design.shares), 6))


def _variance(baseline: Baseline, design: Design, effect: float) -> float:
    """Return the variance of the difference, times the units of all arms."""
    first, second = design.shares
    return (
        baseline.variance_at(baseline.mean) / first
        + baseline.variance_at(baseline.mean + effect) / second
    )


def _shift(baseline: Baseline, design: Design, effect: float, units: int) -> float:
    """Return the effect in standard errors of the difference at `units`."""
    return abs(effect) * math.sqrt(units / _variance(baseline, design, effect))


@lru_cache(maxsize=512)
def _shift_needed(level: float, share: float, power: float) -> float:
    """Return the effect, in standard errors at the planned end, that has this `power`."""
    low, high = 0.0, 16.0
    while high - low > 1e-3:
        middle = (low + high) / 2.0
        low, high = (low, middle) if _crossing(middle, level, share) >= power else (middle, high)
    return high


@lru_cache(maxsize=4_096)
def _crossing(shift: float, level: float, share: float) -> float:
    """Return the probability that a Brownian path with drift crosses the sequence's boundary.

    At time u, the pair's share of its units at the end, the standardised difference is W(u)/√u with
    drift shift·u. The density of paths that have not crossed is propagated over a grid from time to
    time (Armitage, McPherson and Rowe 1969); between times the probability that a bridge crosses is
    exp(−2·(b₀ − x)(b₁ − y)/Δu) (Siegmund 1985). A boundary with discrete looks is crossed as often
    as a continuously monitored one that is farther out by the mean overshoot. Crossings on the
    opposite side are ignored.
    """
    times = [float(u) for u in np.geomspace(0.004, 1.0, TIMES)]
    # The boundary depends on units only by their share of the plan.
    plan = 10_000_000
    overshoot = OVERSHOOT / math.sqrt(LOOKS)
    bounds = [
        boundary(int(u * share * plan), level, plan, level)[0] * math.sqrt(u) + overshoot
        for u in times
    ]
    grids = [_grid(u, bound) for u, bound in zip(times, bounds, strict=True)]
    density = _normal(grids[0] - shift * times[0], times[0])
    for at in range(1, TIMES):
        before, after, gap = grids[at - 1], grids[at], times[at] - times[at - 1]
        distances = np.outer(bounds[at] - after, bounds[at - 1] - before)
        transitions = _normal(after[:, None] - before[None, :] - shift * gap, gap)
        density = transitions * -np.expm1(-2.0 * distances / gap) @ (density * _weights(before))
    return min(1.0, max(0.0, 1.0 - float(density @ _weights(grids[-1]))))


def _grid(u: float, bound: float) -> Floats:
    """Return grid points below the boundary, dense near it, as far down as driftless paths go."""
    depth = bound + BELOW * math.sqrt(u)
    return np.asarray(bound - np.linspace(0.0, 1.0, CELLS) ** 2 * depth)


def _normal(x: Floats, variance: float) -> Floats:
    return np.asarray(np.exp(-x * x / (2.0 * variance)) / math.sqrt(2.0 * math.pi * variance))


def _weights(grid: Floats) -> Floats:
    """Return the weights of the trapezium rule for a descending grid."""
    gaps = -np.diff(grid) / 2.0
    return np.asarray(np.concatenate([gaps, [0.0]]) + np.concatenate([[0.0], gaps]))


# --- searching -----------------------------------------------------------------------------------


def _smallest(is_enough: Callable[[int], bool]) -> int | None:
    high = 4
    while not is_enough(high):
        high *= 2
        if high > UNITS_MAX:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if is_enough(middle):
            high = middle
        else:
            low = middle
    return high


def _check_effect(baseline: Baseline, effect: float) -> None:
    if not math.isfinite(effect) or effect == 0.0:
        raise ValueError("the effect must be a finite number other than 0")
    if baseline.sd is None and not 0.0 <= baseline.mean + effect <= 1.0:
        raise ValueError(
            f"an effect of {effect:+g} would take the rate of {baseline.mean:g} to "
            f"{baseline.mean + effect:g}, beyond 0 or 1"
        )
