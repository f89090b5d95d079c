"""How many units an experiment needs, what it can detect, and with which power it finds it.

Of two arms, control and the treatment with the smallest weight: with more treatments each is read
at its share of the level, as a report reads it before Holm's procedure relaxes any. `units` are of
all arms together. A reading at the planned end is a fixed-horizon test; one that may be made at
any time is the confidence sequence of `stats.sequential`, which pays for that with units.
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
# Beyond so many degrees of freedom Student's t is the normal distribution to six digits.
NORMAL_FROM = 20_000
# A path is followed from one of so many times to the next.
TIMES = 48
# The size for a verdict at any time is for so many looks, evenly spread. Who looks less often finds
# less: 2.5 points of power lie between 50 looks and looks without a pause, and these are in the
# middle.
LOOKS = 125
# E of how far a path is beyond a boundary when a look first finds it there, in standard deviations
# of a step: −ζ(1/2)/√(2π) (Chernoff 1965; Siegmund 1985, section 10).
OVERSHOOT = 0.5826
CELLS = 240
# How far below 0 a path is followed, in its standard deviations.
BELOW = 9.0


@dataclass(frozen=True)
class Baseline:
    """What control is expected to show: a rate, or the mean and the spread of units' values.

    `sd` is None for a rate, whose spread follows from it. A ratio's is that of its linearised
    values, √n times its standard error. `skewness` is that of units' values, 0 where unknown.
    """

    mean: float
    sd: float | None = None
    skewness: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean):
            raise ValueError("the baseline's mean must be a finite number")
        if self.sd is None and not 0.0 < self.mean < 1.0:
            raise ValueError(f"a baseline rate lies between 0 and 1, and {self.mean:g} does not")
        if self.sd is not None and not (math.isfinite(self.sd) and self.sd > 0.0):
            raise ValueError(f"the spread of units' values must be above 0, and {self.sd:g} is not")

    def variance_at(self, mean: float) -> float:
        """Return the variance of a unit's value where the mean is `mean`."""
        return mean * (1.0 - mean) if self.sd is None else self.sd**2


@dataclass(frozen=True)
class Design:
    """Whose difference is to be found, how often wrongly, and how surely.

    `shares` are of all units: control's and the smallest treatment's. `level` is the two-sided
    error of one reading of one treatment.
    """

    shares: tuple[float, float]
    level: float
    power: float = 0.8

    def __post_init__(self) -> None:
        if not all(0.0 < share < 1.0 for share in self.shares) or sum(self.shares) > 1.0 + 1e-9:
            raise ValueError("control and the treatment each need a share of the units")
        if not 0.0 < self.level < 1.0:
            raise ValueError("the chance of a false verdict lies between 0 and 1")
        if not self.level < self.power < 1.0:
            raise ValueError("the power lies between the chance of a false verdict and 1")


def level_of(alpha: float, arms: int) -> float:
    """Return the level of one reading of one treatment: half of alpha, shared by the treatments."""
    return alpha / 2.0 / max(1, arms - 1)


def units_needed(
    baseline: Baseline, design: Design, effect: float, *, is_sequential: bool = False
) -> int | None:
    """Return the units that find `effect`, absolute, with the design's power; None beyond 10¹².

    Raises ValueError for no effect, and for a rate that it would take beyond 0 or 1.
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
    """Return the chance to find `effect` with so many units. Raises as `units_needed` does."""
    _check_effect(baseline, effect)
    power = _sequential_power if is_sequential else _fixed_power
    return power(baseline, design, effect, units)


def detectable(
    baseline: Baseline, design: Design, units: int, *, is_sequential: bool = False
) -> float | None:
    """Return the smallest increase that so many units find with the design's power, absolute.

    None where no increase is large enough: a rate ends at 1.
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
    """Return the units that show an arm like control to be no worse by `margin`, one-sided.

    n·w₀w₁/(w₀ + w₁) = (z₁₋α + z_power)²·σ²/margin² (Julious 2004). Raises ValueError for a margin
    that is not above 0.
    """
    if not (math.isfinite(margin) and margin > 0.0):
        raise ValueError(f"a margin is above 0, and {margin:g} is not")
    reach = float(ndtri(1.0 - design.level) + ndtri(design.power))
    variance = baseline.variance_at(baseline.mean) * sum(1.0 / share for share in design.shares)
    units = math.ceil(reach**2 * variance / margin**2)
    return units if units <= UNITS_MAX else None


def units_carried(baseline: Baseline, design: Design) -> int:
    """Return with how many units the smaller arm carries the skewness, so that anything is read.

    λ = skewness·|n₀ − n₁|/√(n₀·n₁·(n₀ + n₁)), as in `stats.skewness`; equal arms need none.
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
    # It takes seconds to import, which no process should pay at its start.
    from scipy.stats import nct, t

    critical = float(t.isf(design.level / 2.0, freedom))
    # On the wrong side, where nct's own lower tail loses its digits far out.
    below = float(nct.sf(critical, freedom, -shift))
    return float(nct.sf(critical, freedom, shift)) + below


def _power_of_rates(rate: float, design: Design, effect: float, units: int) -> float:
    """The pooled z test with the unpooled variance of the alternative (Fleiss 1981, chapter 3).

    10 % against 12 % takes 3,841 units for each of two arms, at 5 % and a power of 80 %.
    """
    first, second = design.shares
    other = rate + effect
    pooled = (first * rate + second * other) / (first + second)
    null = math.sqrt(pooled * (1.0 - pooled) * (1.0 / first + 1.0 / second) / units)
    real = math.sqrt((rate * (1.0 - rate) / first + other * (1.0 - other) / second) / units)
    if real == 0.0:
        return 1.0
    critical = float(ndtri(1.0 - design.level / 2.0)) * null
    return float(ndtr((abs(effect) - critical) / real) + ndtr((-abs(effect) - critical) / real))


# --- at any time until the planned end -----------------------------------------------------------


def _sequential_power(baseline: Baseline, design: Design, effect: float, units: int) -> float:
    """The chance that the sequence excludes 0 at some look until `units`, which it is tuned to."""
    shift = _shift(baseline, design, effect, units)
    return _crossing(round(min(shift, 50.0), 4), design.level, round(sum(design.shares), 6))


def _variance(baseline: Baseline, design: Design, effect: float) -> float:
    """The variance of the difference, times the units of all arms."""
    first, second = design.shares
    return (
        baseline.variance_at(baseline.mean) / first
        + baseline.variance_at(baseline.mean + effect) / second
    )


def _shift(baseline: Baseline, design: Design, effect: float, units: int) -> float:
    """The effect in standard errors of the difference at `units`."""
    return abs(effect) * math.sqrt(units / _variance(baseline, design, effect))


@lru_cache(maxsize=512)
def _shift_needed(level: float, share: float, power: float) -> float:
    """The effect in standard errors at the planned end that the sequence finds with `power`."""
    low, high = 0.0, 16.0
    while high - low > 1e-3:
        middle = (low + high) / 2.0
        low, high = (low, middle) if _crossing(middle, level, share) >= power else (middle, high)
    return high


@lru_cache(maxsize=4_096)
def _crossing(shift: float, level: float, share: float) -> float:
    """The chance that a Brownian path with drift crosses the sequence's boundary.

    By time u, the pair's share of its units at the end, the standardised difference is W(u)/√u
    with drift shift·u; a path that goes on is followed over a grid from look to look (Armitage,
    McPherson and Rowe 1969), and between looks by the chance that a bridge crosses,
    exp(−2·(b₀ − x)(b₁ − y)/Δu) (Siegmund 1985). A boundary that is looked at now and then is
    crossed as seldom as one without a pause that is farther out by the mean overshoot. The other
    side's crossing is left out.
    """
    times = [float(u) for u in np.geomspace(0.004, 1.0, TIMES)]
    # The boundary depends on units only by their share of the plan.
    plan = 10_000_000
    farther = OVERSHOOT / math.sqrt(LOOKS)
    bounds = [
        boundary(int(u * share * plan), level, plan, level)[0] * math.sqrt(u) + farther
        for u in times
    ]
    grids = [_grid(u, bound) for u, bound in zip(times, bounds, strict=True)]
    density = _normal(grids[0] - shift * times[0], times[0])
    for at in range(1, TIMES):
        before, after, gap = grids[at - 1], grids[at], times[at] - times[at - 1]
        far = np.outer(bounds[at] - after, bounds[at - 1] - before)
        moves = _normal(after[:, None] - before[None, :] - shift * gap, gap)
        density = moves * -np.expm1(-2.0 * far / gap) @ (density * _weights(before))
    return min(1.0, max(0.0, 1.0 - float(density @ _weights(grids[-1]))))


def _grid(u: float, bound: float) -> Floats:
    """Return places below the boundary, dense near it, as far down as a path without drift goes."""
    depth = bound + BELOW * math.sqrt(u)
    return np.asarray(bound - np.linspace(0.0, 1.0, CELLS) ** 2 * depth)


def _normal(x: Floats, variance: float) -> Floats:
    return np.asarray(np.exp(-x * x / (2.0 * variance)) / math.sqrt(2.0 * math.pi * variance))


def _weights(grid: Floats) -> Floats:
    """Return the trapezium rule's weights of a descending grid."""
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
        raise ValueError("the effect to find must be a number other than 0")
    if baseline.sd is None and not 0.0 <= baseline.mean + effect <= 1.0:
        raise ValueError(
            f"an effect of {effect:+g} would take the rate of {baseline.mean:g} to "
            f"{baseline.mean + effect:g}, beyond 0 or 1"
        )
