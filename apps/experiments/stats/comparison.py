"""Compares one treatment with control: difference, standard error, p-values and intervals.

Verdicts and intervals use the same difference, standard error and critical value. So an interval
never contradicts its p-value, and the relative interval never contradicts the absolute one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, ndtr, ndtri, stdtr, stdtrit

from apps.experiments.stats.moments import Moments
from apps.experiments.stats.rate_scores import RateRegion
from apps.experiments.stats.tails import normal_score, skewed_critical_values

# With fewer events or non-events in an arm, Fisher's exact test replaces the normal approximation.
SMALL_CELL = 10
FISHER_SUPPORT_MAX = 1_000_000
# The smallest p-value that is reported; smaller ones are shown as this, never as 0.
P_MIN = 1e-300


class State(StrEnum):
    """Whether a result exists, and if not, why not."""

    OK = "ok"
    NOT_ENOUGH_DATA = "not-enough-data"
    NO_VARIANCE = "no-variance"
    INVALID_DATA = "invalid-data"
    SRM = "srm"
    UNEXPECTED_UNITS = "unexpected-units"


class UpliftState(StrEnum):
    OK = "ok"
    NOT_ESTIMABLE = "not-estimable"
    CONTROL_MEAN_ZERO = "control-mean-zero"


class Region(Protocol):
    """A confidence region by test inversion, for a standard error that depends on the difference.

    A normal interval has the same standard error for each hypothetical difference. The region of
    critical value c contains the differences whose own test statistic does not exceed c.
    """

    @property
    def score(self) -> float:
        """The test statistic of no difference, in standard errors, with the effect's sign."""

    @property
    def remark(self) -> str:
        """What limits the precision of the difference, or an empty string."""

    def limits(self, critical: float) -> tuple[float, float]:
        """Return the smallest and the largest difference, infinite if there is no bound."""

    def uplift_limits(self, critical: float) -> tuple[float, float] | None:
        """Return the limits relative to control, or None if control may be 0."""

    def unbounded_reason(self, critical: float) -> str:
        """Return why a bound is infinite, and what is missing."""


@dataclass(frozen=True)
class Difference:
    """Treatment minus control, in the metric's unit, with the variance of each arm's mean.

    `df` is None if the reference distribution is the normal one. `exact_p` is set if Fisher's test
    decides. If `state` is not OK, `reason` says why and the variances are 0. `skewness` is that of
    the standardised difference if both arms' values have the same distribution. With a `region`,
    tests and intervals come from it; the variances are then for display only, 0 if none applies.
    """

    state: State
    reason: str
    test: str
    control_mean: float
    treatment_mean: float
    control_variance: float = 0.0
    treatment_variance: float = 0.0
    df: float | None = None
    exact_p: float | None = None
    skewness: float = 0.0
    region: Region | None = field(default=None, compare=False, kw_only=True)

    @property
    def effect(self) -> float:
        return self.treatment_mean - self.control_mean

    @property
    def standard_error(self) -> float:
        return math.sqrt(self.control_variance + self.treatment_variance)

    @property
    def uplift(self) -> float | None:
        """The effect relative to |control mean|; None if that is 0 or the quotient overflows."""
        if self.control_mean == 0.0:
            return None
        uplift = self.effect / abs(self.control_mean)
        return uplift if math.isfinite(uplift) else None

    @property
    def score(self) -> float:
        """The statistic of the test of no difference, to be read as a normal z.

        It comes from the region, or is the effect in standard errors, corrected for skewness (see
        `tails`).
        """
        if self.region is not None:
            return self.region.score
        return normal_score(self.effect / self.standard_error, self.skewness)

    def bounds(self, critical: float) -> tuple[float, float]:
        """Return the interval whose bounds lie `critical` normal deviations from the effect.

        It excludes 0 exactly when |score| exceeds `critical`. A bound of a region may be infinite.
        """
        if self.region is not None:
            return self.region.limits(critical)
        below, above = skewed_critical_values(critical, self.skewness)
        error = self.standard_error
        return self.effect - above * error, self.effect + below * error


@dataclass(frozen=True)
class Reading:
    """The test result and interval of a difference at level `alpha`; a missing bound is None.

    `method` is "fixed-horizon" (valid at one planned look) or "sequential" (valid at every look).
    `low` and `high` are in the metric's unit, `uplift_low` and `uplift_high` are fractions.
    """

    method: str
    state: State
    reason: str
    alpha: float
    is_significant: bool = False
    p_value: float | None = None
    low: float | None = None
    high: float | None = None
    uplift_state: UpliftState = UpliftState.NOT_ESTIMABLE
    uplift_low: float | None = None
    uplift_high: float | None = None


def compare_means(control: Moments, treatment: Moments) -> Difference:
    """Compare means by Welch's test: se² = vA/nA + vB/nB, df by Satterthwaite (Welch 1947).

    Fewer than two units in an arm, or two constant arms, give a state other than OK.
    """
    means = control.mean, treatment.mean
    if min(control.n, treatment.n) < 2:
        reason = f"each arm needs at least 2 units ({control.n} and {treatment.n})"
        return Difference(State.NOT_ENOUGH_DATA, reason, "welch-t", *means)
    noise_a, noise_b = _variance_of_mean(control), _variance_of_mean(treatment)
    if noise_a + noise_b == 0.0:
        return Difference(State.NO_VARIANCE, "the values of neither arm vary", "welch-t", *means)
    return welch(means, (noise_a, noise_b), (control.n, treatment.n), "welch-t")


def welch(
    means: tuple[float, float], noise: tuple[float, float], n: tuple[int, int], test: str
) -> Difference:
    """Return the difference of two estimates; `noise` are the variances of their means, not both 0.

    Degrees of freedom by Satterthwaite (1946).
    """
    whole = noise[0] + noise[1]
    share_a, share_b = noise[0] / whole, noise[1] / whole
    df = 1.0 / (share_a**2 / (n[0] - 1) + share_b**2 / (n[1] - 1))
    return Difference(State.OK, "", test, *means, noise[0], noise[1], df=df)


def compare_rates(control_n: int, control_events: int, n: int, events: int) -> Difference:
    """Compare rates by the pooled z test (Fleiss 1981), or Fisher's exact test for small counts.

    Intervals invert the score test of each difference or ratio. For no difference that test is the
    pooled z, so that an interval excludes 0 exactly when z is significant (`rate_scores`).
    """
    if min(control_n, n) < 2:
        reason = f"each arm needs at least 2 units ({control_n} and {n})"
        return Difference(
            State.NOT_ENOUGH_DATA,
            reason,
            "pooled-z",
            control_events / max(control_n, 1),
            events / max(n, 1),
        )
    means = control_events / control_n, events / n
    total, total_events = control_n + n, control_events + events
    if total_events in (0, total):
        reason = "no unit has the event" if total_events == 0 else "every unit has the event"
        return Difference(State.NO_VARIANCE, reason, "pooled-z", *means)
    pooled = total_events / total * ((total - total_events) / total)
    smallest = min(control_events, control_n - control_events, events, n - events)
    support = min(control_n, n, total_events, total - total_events)
    is_small = smallest < SMALL_CELL and support <= FISHER_SUPPORT_MAX
    exact = fisher_p(control_n, control_events, n, events) if is_small else None
    return Difference(
        State.OK,
        "",
        "fisher-exact" if is_small else "pooled-z",
        *means,
        control_variance=pooled / control_n,
        treatment_variance=pooled / n,
        exact_p=exact,
        region=RateRegion(control_n, control_events, n, events),
    )


def fisher_p(control_n: int, control_events: int, n: int, events: int) -> float:
    """Return the two-sided p of Fisher's exact test.

    It is the total probability of all tables that are at most as likely as the observed one.
    """
    total_events = control_events + events
    lowest, highest = max(0, total_events - control_n), min(n, total_events)
    table = np.arange(lowest, highest + 1, dtype=np.float64)
    logs = _log_choose(n, table) + _log_choose(control_n, total_events - table)
    logs -= _log_choose(control_n + n, np.array(float(total_events)))
    observed = logs[events - lowest]
    # The tolerance makes tables of equal probability compare as equal in spite of rounding.
    p_value = float(np.exp(logs[logs <= observed + 1e-7]).sum())
    return min(1.0, max(p_value, P_MIN))


def read_fixed(difference: Difference, alpha: float) -> Reading:
    """Return the fixed-horizon reading, by Student's t, a normal z or Fisher's exact test."""
    method = "fixed-horizon"
    if difference.state is not State.OK:
        return Reading(method, difference.state, difference.reason, alpha)
    if difference.exact_p is not None:
        p_value, critical = difference.exact_p, -float(ndtri(alpha / 2.0))
        # Test-based limits (Miettinen 1976): the standard error that would give Fisher's p.
        needed = -float(ndtri(p_value / 2.0))
        own = abs(difference.score)
        if own > 0.0 and needed > 0.0:
            critical *= own / needed
    elif difference.df is None:
        p_value = 2.0 * float(ndtr(-abs(difference.score)))
        critical = -float(ndtri(alpha / 2.0))
    else:
        p_value = 2.0 * float(stdtr(difference.df, -abs(difference.score)))
        critical = -float(stdtrit(difference.df, alpha / 2.0))
    return read_at(difference, method=method, alpha=alpha, critical=critical, p_value=p_value)


def read_at(
    difference: Difference, *, method: str, alpha: float, critical: float, p_value: float
) -> Reading:
    """Return the reading at a critical value of the score; `alpha` and `p_value` must match it."""
    low, high = difference.bounds(critical)
    if difference.region is not None and not (math.isfinite(low) and math.isfinite(high)):
        reason = difference.region.unbounded_reason(critical)
        return Reading(method, State.NOT_ENOUGH_DATA, reason, alpha)
    uplift_state, uplift_low, uplift_high = uplift_interval(difference, critical)
    is_significant = p_value < alpha
    return Reading(
        method=method,
        state=State.OK,
        reason=difference.region.remark if difference.region and not is_significant else "",
        alpha=alpha,
        is_significant=is_significant,
        p_value=min(1.0, max(p_value, P_MIN)),
        low=low,
        high=high,
        uplift_state=uplift_state,
        uplift_low=uplift_low,
        uplift_high=uplift_high,
    )


def uplift_interval(
    difference: Difference, critical: float
) -> tuple[UpliftState, float | None, float | None]:
    """Return the interval of the ratio of means, minus 1, at critical value c.

    It is the region's own, or Fieller's (1954): r = mB/mA, g = c²·vA/(nA·mA²),
    [r ± (c/|mA|)·sqrt((1−g)·vB/nB + r²·vA/nA)]/(1−g). For g ≥ 1 the control mean may be 0 and the
    interval is unbounded: not estimable. A negative control mean reverses the signs, so that the
    uplift always has the sign of the effect. For a skewed difference each bound has its own c, as
    in the absolute interval.
    """
    if difference.control_mean == 0.0:
        return UpliftState.CONTROL_MEAN_ZERO, None, None
    if difference.region is not None:
        limits = difference.region.uplift_limits(critical)
        if limits is None or not all(map(math.isfinite, limits)):
            return UpliftState.NOT_ESTIMABLE, None, None
        return UpliftState.OK, *limits
    below, above = skewed_critical_values(critical, difference.skewness)
    ends = _fieller(difference, above), _fieller(difference, below)
    if ends[0] is None or ends[1] is None:
        return UpliftState.NOT_ESTIMABLE, None, None
    return UpliftState.OK, ends[0][0], ends[1][1]


def _fieller(difference: Difference, critical: float) -> tuple[float, float] | None:
    mean = difference.control_mean
    scale = critical / abs(mean)
    g = scale * scale * difference.control_variance
    if not g < 1.0:
        return None
    ratio = difference.treatment_mean / mean
    inside = (1.0 - g) * difference.treatment_variance + ratio * ratio * difference.control_variance
    half = scale * math.sqrt(inside)
    low, high = (ratio - half) / (1.0 - g) - 1.0, (ratio + half) / (1.0 - g) - 1.0
    if not (math.isfinite(low) and math.isfinite(high)):
        return None
    return (low, high) if mean > 0.0 else (-high, -low)


def _variance_of_mean(moments: Moments) -> float:
    variance = moments.variance or 0.0
    # A standard deviation within the rounding error of the mean counts as 0; no mean is more
    # precise.
    rounding = 4.0 * float(np.finfo(np.float64).eps) * abs(moments.mean)
    if math.sqrt(variance) <= rounding:
        return 0.0
    return variance / moments.n + rounding * rounding


def _log_choose(n: int, k: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = -np.log1p(n) - betaln(n - k + 1.0, k + 1.0)
    return result
