"""Score tests of any difference or ratio of two rates, and the intervals that invert them.

The variance of a difference of rates depends on the rates, and these on the hypothetical
difference. The variance pooled over the arms is right for "no difference" only: for "worse by
exactly the margin", with unequal arms, it is that of the larger arm alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STEPS_MAX = 100
# The relative precision of interval bounds.
ROUNDING = 1e-10


@dataclass(frozen=True)
class RateRegion:
    """Counts of two arms with n ≥ 2 units each; some but not all units have the event.

    For simulations counts may be arrays of the same shape, which gives arrays as results.
    """

    control_n: Any
    control_events: Any
    n: Any
    events: Any

    remark = ""

    @cached_property
    def rates(self) -> tuple[Any, Any]:
        """The rates of control and treatment."""
        return self.control_events / self.control_n, self.events / self.n

    @cached_property
    def score(self) -> float:
        """The pooled z of no difference."""
        return float(self.score_of(0.0))

    def score_of(self, difference: Any) -> Any:
        """Return the observed difference minus `difference`, in standard errors.

        (d − δ)/√(p̃_A·q̃_A/n_A + p̃_B·q̃_B/n_B) with the maximum-likelihood rates under a difference
        of δ (Farrington and Manning 1990; Miettinen and Nurminen 1985, without their factor
        N/(N − 1), so that it equals the pooled z at δ = 0).
        """
        off = self.rates[1] - self.rates[0] - np.asarray(difference, dtype=np.float64)
        variance = self.variance_at(difference)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(off == 0.0, 0.0, off / np.sqrt(variance)))

    def limits(self, critical: float) -> tuple[float, float]:
        """Return the differences with a score of ±critical (Mee 1984), from −1 to 1."""
        middle = self.rates[1] - self.rates[0]

        def excess(difference: Floats) -> Floats:
            reach = critical * np.sqrt(self.variance_at(difference))
            return np.asarray(np.abs(middle - difference) - reach)

        return _ends(excess, float(middle), (-1.0, 1.0))

    def one_sided_limits(self, critical: float) -> tuple[float, float]:
        """Return limits with equal errors on both sides, even if one arm has few events.

        The score of few events is skewed: instead of ±c its limits are ±c + γ·(c² − 1)/6, with γ
        its skewness at the hypothetical difference (Gart and Nam 1990; Laud 2017). The pooled z
        test of no difference has no such correction, so that these limits are for margins only.
        """
        middle = float(self.rates[1] - self.rates[0])
        return _one_sided(middle, critical, self.variance_at, self.third_moment_at)

    def uplift_limits(self, critical: float) -> tuple[float, float] | None:
        """Return the ratios of rates, minus 1, with a score of ±critical (Koopman 1984).

        None if control has no event. An infinite value means no bound.
        """
        if self.control_events == 0:
            return None
        before, after = self.rates

        # Ratios φ extend to infinity, so that the search is over φ/(1 + φ).
        def excess(share: Floats) -> Floats:
            off = np.abs(after * (1.0 - share) - share * before)
            return np.asarray(off - critical * np.sqrt(self._ratio_variance_at(share)))

        low, high = _ends(excess, float(after / (before + after)), (0.0, 1.0))
        return _ratio(low) - 1.0, _ratio(high) - 1.0

    def unbounded_reason(self, critical: float) -> str:
        """Return an empty string: differences of rates always have bounds."""
        return ""

    def variance_at(self, difference: Any) -> Floats:
        """Return the variance of the observed difference if `difference` is the true one."""
        control, treatment = self.restricted(difference)
        return np.asarray(
            control * (1.0 - control) / self.control_n + treatment * (1.0 - treatment) / self.n
        )

    def third_moment_at(self, difference: Any) -> Floats:
        """Return the third cumulant of the observed difference if `difference` is the true one."""
        control, treatment = self.restricted(difference)
        thirds = [p * (1.0 - p) * (1.0 - 2.0 * p) for p in (control, treatment)]
        return np.asarray(thirds[1] / self.n**2 - thirds[0] / self.control_n**2)

    def restricted(self, difference: Any) -> tuple[Floats, Floats]:
        """Return the maximum-likelihood rates (control, treatment) with this `difference`.

        The treatment's rate is a root of the cubic in the appendix of Farrington and Manning
        (1990), by their closed form and two Newton steps, since the closed form loses digits.
        """
        delta = np.asarray(difference, dtype=np.float64)
        before, after = self.rates
        ratio = self.control_n / self.n
        cubic = (
            1.0 + ratio,
            -(1.0 + ratio + after + ratio * before + delta * (ratio + 2.0)),
            delta * delta + delta * (2.0 * after + ratio + 1.0) + after + ratio * before,
            -after * delta * (1.0 + delta),
        )
        low, high = np.maximum(0.0, delta), np.minimum(1.0, 1.0 + delta)
        treatment = _polished(cubic, np.clip(_cubic_root(*cubic), low, high), low, high)
        # At a difference of 0 it is the pooled rate, which rounding may miss if that is 0 or 1.
        pooled = (after + ratio * before) / (1.0 + ratio)
        treatment = np.where(delta == 0.0, pooled, treatment)
        return treatment - delta, treatment

    def _ratio_variance_at(self, share: Floats) -> Floats:
        """Return the variance of p_B·(1 − s) − p_A·s if the ratio p_B/p_A is s/(1 − s)."""
        total = self.control_events + self.events
        # Rates (1 − s)·r and s·r: the smaller root of a quadratic (Miettinen and Nurminen 1985).
        ratio_n = (self.control_n + self.n) * share * (1.0 - share)
        linear = (
            (self.n + self.control_events) * share + (self.control_n + self.events) * (1.0 - share)
        )  # fmt: skip
        root = np.sqrt(np.maximum(0.0, linear * linear - 4.0 * ratio_n * total))
        scale = 2.0 * total / (linear + root)
        control, treatment = (1.0 - share) * scale, share * scale
        rest = 1.0 - np.minimum(1.0, np.stack([control, treatment]))
        return np.asarray(
            (1.0 - share) ** 2 * treatment * rest[1] / self.n
            + share * share * control * rest[0] / self.control_n
        )


@dataclass(frozen=True)
class StratifiedRateRegion:
    """The weighted difference Σ wₛ·(p_Bₛ − p_Aₛ) over strata with different rates.

    Counts are arrays of the strata; `weights` sum to 1 and do not depend on the events.
    """

    control_n: Floats
    control_events: Floats
    n: Floats
    events: Floats
    weights: Floats

    remark = ""

    @cached_property
    def _strata(self) -> RateRegion:
        columns = (self.control_n, self.control_events, self.n, self.events)
        return RateRegion(*(np.asarray(each, dtype=np.float64)[:, None] for each in columns))

    @property
    def difference(self) -> float:
        before, after = self._strata.rates
        return float(self.weights @ (after - before)[:, 0])

    @cached_property
    def score(self) -> float:
        """The statistic of the test of no difference; with Cochran's weights, Mantel-Haenszel's."""
        noise = math.sqrt(float(self._variance_at(np.zeros(1))[0]))
        return self.difference / noise if noise > 0.0 else 0.0

    def limits(self, critical: float) -> tuple[float, float]:
        """Return the differences with a score of ±critical (Miettinen and Nurminen 1985, sect. 5).

        Each stratum has its maximum-likelihood rates under the hypothetical difference. Its
        variance has their factor N/(N − 1), as in the test of Mantel and Haenszel.
        """
        middle = self.difference

        def excess(difference: Floats) -> Floats:
            reach = critical * np.sqrt(self._variance_at(difference))
            return np.asarray(np.abs(middle - difference) - reach)

        return _ends(excess, middle, (-1.0, 1.0))

    def one_sided_limits(self, critical: float) -> tuple[float, float]:
        """Return limits with equal errors on both sides, as in `RateRegion`."""
        return _one_sided(self.difference, critical, self._variance_at, self._third_moment_at)

    def uplift_limits(self, critical: float) -> tuple[float, float] | None:
        """Return Fieller's limits (1954) of the ratio of the weighted rates, minus 1.

        They use the variance of no difference, so that they contain 0 exactly if the test does not
        reject. None if control's rate is not distinguishable from 0.
        """
        before, after = (float(self.weights @ rate[:, 0]) for rate in self._strata.rates)
        pooled = (self.control_events + self.events) / (total := self.control_n + self.n)
        spread = self.weights**2 * pooled * (1.0 - pooled) * total / (total - 1.0)
        noise = float((spread / self.control_n).sum()), float((spread / self.n).sum())
        if before <= 0.0 or (g := critical**2 * noise[0] / before**2) >= 1.0:
            return None
        ratio = after / before
        half = critical / before * math.sqrt((1.0 - g) * noise[1] + ratio * ratio * noise[0])
        return (ratio - half) / (1.0 - g) - 1.0, (ratio + half) / (1.0 - g) - 1.0

    def unbounded_reason(self, critical: float) -> str:
        """Return an empty string: differences of rates always have bounds."""
        return ""

    def _variance_at(self, difference: Floats) -> Floats:
        total = self.control_n + self.n
        each = self._strata.variance_at(difference) * (total / (total - 1.0))[:, None]
        return np.asarray(self.weights**2 @ each)

    def _third_moment_at(self, difference: Floats) -> Floats:
        return np.asarray(self.weights**3 @ self._strata.third_moment_at(difference))


def _one_sided(
    middle: float,
    critical: float,
    variance_at: Callable[[Floats], Floats],
    third_at: Callable[[Floats], Floats],
) -> tuple[float, float]:
    signs = np.array([1.0, -1.0])

    def excess(difference: Floats) -> Floats:
        variance, third = variance_at(difference), third_at(difference)
        skewed = np.divide(third, variance, out=np.zeros_like(variance), where=variance > 0.0)
        reach = critical * np.sqrt(variance) + signs * skewed * (critical**2 - 1.0) / 6.0
        return np.asarray(np.abs(middle - difference) - reach)

    return _ends(excess, middle, (-1.0, 1.0))


def _ratio(share: float) -> float:
    return share / (1.0 - share) if share < 1.0 else math.inf


def _cubic_root(a: Any, b: Any, c: Any, d: Any) -> Floats:
    """Return the middle root of a cubic with three real roots, by Viète's cosine formula."""
    v = b**3 / (27.0 * a**3) - b * c / (6.0 * a * a) + d / (2.0 * a)
    u = np.sqrt(np.maximum(0.0, b * b / (9.0 * a * a) - c / (3.0 * a)))
    u = np.where(v < 0.0, -u, u)
    cubed = u**3
    cosine = np.divide(v, cubed, out=np.ones_like(cubed), where=cubed != 0.0)
    angle = (math.pi + np.arccos(np.clip(cosine, -1.0, 1.0))) / 3.0
    return np.asarray(2.0 * u * np.cos(angle) - b / (3.0 * a))


def _polished(cubic: tuple[Any, Any, Any, Any], root: Floats, low: Floats, high: Floats) -> Floats:
    a, b, c, d = cubic
    for _ in range(2):
        value = ((a * root + b) * root + c) * root + d
        slope = (3.0 * a * root + 2.0 * b) * root + c
        step = np.divide(value, slope, out=np.zeros_like(root), where=slope > 0.0)
        root = np.clip(root - step, low, high)
    return root


def _ends(
    excess: Callable[[Floats], Floats], middle: float, edges: tuple[float, float]
) -> tuple[float, float]:
    """Return the zeros of `excess` on both sides of `middle`, near which it is negative.

    Both are computed at once, by the Illinois variant of false position (Dowell and Jarratt 1971).
    If `excess` is not positive at an edge, the edge is the result.
    """
    inside, outside = np.full(2, middle), np.array(edges)
    at_outside = excess(outside)
    is_open = at_outside > 0.0
    # In the middle it may be 0, since an observed rate of 0 or 1 has no variance.
    at_inside = np.minimum(excess(inside), -1e-3 * np.abs(at_outside))
    at, was_beyond = outside, np.zeros(2, dtype=bool)
    for step in range(STEPS_MAX):
        before, gap = at, np.where(is_open, at_outside - at_inside, 1.0)
        at = np.where(is_open, outside - at_outside * (outside - inside) / gap, outside)
        value = excess(at)
        # An endpoint kept twice gets half its weight, so that the next step passes the zero.
        is_beyond = value > 0.0
        half = np.where((is_beyond == was_beyond) & (step > 0), 0.5, 1.0)
        at_inside = np.where(is_beyond, at_inside * half, value)
        at_outside = np.where(is_beyond, value, at_outside * half)
        was_beyond = is_beyond
        inside, outside = np.where(is_beyond, inside, at), np.where(is_beyond, at, outside)
        near = np.abs(at - before) <= ROUNDING * np.abs(at - middle)
        if (near | ~is_open | (value == 0.0)).all():
            break
    return float(at[0]), float(at[1])
