"""One treatment against control: the difference, its noise, and the intervals that follow.

Verdict and intervals come from the same difference, standard error and critical value, so that an
interval never contradicts its p-value, nor the relative interval the absolute one.
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
from apps.experiments.stats.tails import normal_score, reaches

# Below this many events or non-events in an arm the normal approximation gives way to Fisher.
SMALL_CELL = 10
FISHER_SUPPORT_MAX = 1_000_000
# Probabilities below the range of floats are shown as this, never as 0.
P_MIN = 1e-300


class State(StrEnum):
    """Why there is a number, or why there is none."""

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
    """Which parameters of both arms fit the data, where the noise depends on the difference.

    A normal interval has one standard error whatever difference is held against the data; a region
    of critical value c has those differences whose own test does not exceed c.
    """

    @property
    def score(self) -> float:
        """The test of no difference, in standard errors, with the difference's sign."""

    @property
    def remark(self) -> str:
        """What keeps the difference from being known better, or nothing."""

    def limits(self, critical: float) -> tuple[float, float]:
        """Return the least and the largest difference; infinite where there is no bound."""

    def uplift_limits(self, critical: float) -> tuple[float, float] | None:
        """Return the same relative to control, or None where control may be 0."""

    def why_unbounded(self, critical: float) -> str:
        """Say what an infinite end waits for."""


@dataclass(frozen=True)
class Difference:
    """Treatment minus control, in the metric's unit, with the variance of each arm's mean.

    `df` is None where the reference distribution is the normal one. `exact_p` is set where Fisher's
    test decides. Where `state` is not OK, `reason` says why and the noise is 0. `skewness` is that
    of the difference in standard errors, where the arms' values have the same distribution. With a
    `region` tests and intervals are its own; the variances are then for display, 0 where none
    describes it.
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
    def difference(self) -> float:
        return self.treatment_mean - self.control_mean

    @property
    def standard_error(self) -> float:
        return math.sqrt(self.control_variance + self.treatment_variance)

    @property
    def uplift(self) -> float | None:
        """The difference relative to |control mean|; None where that is 0 or overflows."""
        if self.control_mean == 0.0:
            return None
        uplift = self.difference / abs(self.control_mean)
        return uplift if math.isfinite(uplift) else None

    @property
    def score(self) -> float:
        """The test of no difference: a region's own, or the difference in standard errors, as a
        normal one would be as far out (see `tails`).
        """
        if self.region is not None:
            return self.region.score
        return normal_score(self.difference / self.standard_error, self.skewness)

    def bounds(self, critical: float) -> tuple[float, float]:
        """The interval whose ends lie `critical` normal deviations from the difference.

        It excludes 0 exactly when |score| exceeds `critical`. An end may be infinite in a region.
        """
        if self.region is not None:
            return self.region.limits(critical)
        below, above = reaches(critical, self.skewness)
        error = self.standard_error
        return self.difference - above * error, self.difference + below * error


@dataclass(frozen=True)
class Reading:
    """One way to read a difference at level `alpha`; bounds are None where they do not exist.

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
    """Welch's difference of means: se² = vA/nA + vB/nB, df by Satterthwaite (Welch 1947).

    Fewer than two units in an arm, or two constant arms, give a named state instead of noise 0.
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
    """The difference of two estimates whose `noise` are the variances of their means, not both 0.

    Degrees of freedom by Satterthwaite (1946).
    """
    whole = noise[0] + noise[1]
    share_a, share_b = noise[0] / whole, noise[1] / whole
    df = 1.0 / (share_a**2 / (n[0] - 1) + share_b**2 / (n[1] - 1))
    return Difference(State.OK, "", test, *means, noise[0], noise[1], df=df)


def compare_rates(control_n: int, control_events: int, n: int, events: int) -> Difference:
    """Pooled two-proportion z (Fleiss 1981); Fisher's exact test decides where counts are small.

    Intervals hold each difference, or ratio, against the data by its own score test, which for no
    difference is the pooled z: so they exclude 0 exactly when z does (`rate_scores`).
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
    """Two-sided p of Fisher's exact test: the chance of all tables no likelier than this one."""
    total_events = control_events + events
    lowest, highest = max(0, total_events - control_n), min(n, total_events)
    table = np.arange(lowest, highest + 1, dtype=np.float64)
    logs = _log_choose(n, table) + _log_choose(control_n, total_events - table)
    logs -= _log_choose(control_n + n, np.array(float(total_events)))
    observed = logs[events - lowest]
    # The tolerance lets tables of equal chance count as equal in spite of rounding.
    p_value = float(np.exp(logs[logs <= observed + 1e-7]).sum())
    return min(1.0, max(p_value, P_MIN))


def read_fixed(found: Difference, alpha: float) -> Reading:
    """The fixed-horizon reading: Student's t, normal or Fisher's p, and its interval."""
    method = "fixed-horizon"
    if found.state is not State.OK:
        return Reading(method, found.state, found.reason, alpha)
    if found.exact_p is not None:
        p_value, critical = found.exact_p, -float(ndtri(alpha / 2.0))
        # Test-based limits (Miettinen 1976): the standard error that would give Fisher's p.
        needed = -float(ndtri(p_value / 2.0))
        own = abs(found.score)
        if own > 0.0 and needed > 0.0:
            critical *= own / needed
    elif found.df is None:
        p_value = 2.0 * float(ndtr(-abs(found.score)))
        critical = -float(ndtri(alpha / 2.0))
    else:
        p_value = 2.0 * float(stdtr(found.df, -abs(found.score)))
        critical = -float(stdtrit(found.df, alpha / 2.0))
    return read_at(found, method=method, alpha=alpha, critical=critical, p_value=p_value)


def read_at(
    found: Difference, *, method: str, alpha: float, critical: float, p_value: float
) -> Reading:
    """The reading at a critical value of the score; `alpha` and `p_value` must fit it."""
    low, high = found.bounds(critical)
    if found.region is not None and not (math.isfinite(low) and math.isfinite(high)):
        why = found.region.why_unbounded(critical)
        return Reading(method, State.NOT_ENOUGH_DATA, why, alpha)
    uplift_state, uplift_low, uplift_high = uplift_interval(found, critical)
    is_significant = p_value < alpha
    return Reading(
        method=method,
        state=State.OK,
        reason=found.region.remark if found.region and not is_significant else "",
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
    found: Difference, critical: float
) -> tuple[UpliftState, float | None, float | None]:
    """The interval of the ratio of means, minus 1, at critical value c: a region's own, or
    Fieller's (1954):

    r = mB/mA, g = c²·vA/(nA·mA²), [r ± (c/|mA|)·sqrt((1−g)·vB/nB + r²·vA/nA)]/(1−g). For g ≥ 1 the
    control mean may be 0 and the interval is unbounded: not estimable. A negative control mean
    turns the signs, so that the uplift always points where the difference does. Where the
    difference is skewed each bound has its own c, as the absolute interval's have.
    """
    if found.control_mean == 0.0:
        return UpliftState.CONTROL_MEAN_ZERO, None, None
    if found.region is not None:
        limits = found.region.uplift_limits(critical)
        if limits is None or not all(map(math.isfinite, limits)):
            return UpliftState.NOT_ESTIMABLE, None, None
        return UpliftState.OK, *limits
    below, above = reaches(critical, found.skewness)
    ends = _fieller(found, above), _fieller(found, below)
    if ends[0] is None or ends[1] is None:
        return UpliftState.NOT_ESTIMABLE, None, None
    return UpliftState.OK, ends[0][0], ends[1][1]


def _fieller(found: Difference, critical: float) -> tuple[float, float] | None:
    mean = found.control_mean
    scale = critical / abs(mean)
    g = scale * scale * found.control_variance
    if not g < 1.0:
        return None
    ratio = found.treatment_mean / mean
    inside = (1.0 - g) * found.treatment_variance + ratio * ratio * found.control_variance
    half = scale * math.sqrt(inside)
    low, high = (ratio - half) / (1.0 - g) - 1.0, (ratio + half) / (1.0 - g) - 1.0
    if not (math.isfinite(low) and math.isfinite(high)):
        return None
    return (low, high) if mean > 0.0 else (-high, -low)


def _variance_of_mean(moments: Moments) -> float:
    variance = moments.variance or 0.0
    # A spread within the rounding of the mean is no spread, and no mean is known better than that.
    rounding = 4.0 * float(np.finfo(np.float64).eps) * abs(moments.mean)
    if math.sqrt(variance) <= rounding:
        return 0.0
    return variance / moments.n + rounding * rounding


def _log_choose(n: int, k: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = -np.log1p(n) - betaln(n - k + 1.0, k + 1.0)
    return result
