"""Is a canary's outcome not worse than control's by more than a margin? Valid however often one
looks.

Units are compared with those that met their arm in the same step, and the steps' differences are
averaged: shares differ between steps, so that pooled counts would turn an incident that hits both
arms into a difference between them (Simpson's paradox).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from apps.experiments.stats.data import MetricKind
from apps.experiments.stats.moments import Moments
from apps.experiments.stats.sequential import boundary, silence


@dataclass(frozen=True)
class Stratum:
    """Both arms' units that met their arm in one step."""

    canary: Moments
    control: Moments

    @property
    def weight(self) -> float:
        """What minimises the variance of the average where all units vary alike."""
        return self.canary.n * self.control.n / (self.canary.n + self.control.n)


@dataclass(frozen=True)
class NonInferiority:
    """The difference canary − control, positive where the canary is better.

    `low` bounds it from below at `alpha_pass`, `high` from above at `alpha_fail`; `silent` says why
    there are no bounds yet. Means are None, and bounds too, where no unit can be compared.
    """

    canary: Moments
    control: Moments
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    silent: str | None = None


def compare_strata(
    strata: Sequence[Stratum],
    *,
    kind: MetricKind,
    is_increase_better: bool,
    alpha_pass: float,
    alpha_fail: float,
) -> NonInferiority:
    """Return the stratified difference with the bounds of `sequential.boundary`.

    d = Σ wₛ·dₛ/Σ wₛ with wₛ = n1·n0/(n1 + n0) (Cochran 1954), and se² = Σ wₛ²·(v1/n1 + v0/n0)
    /(Σ wₛ)² with each arm's variance v pooled over the steps. Of a proportion the variance pooled
    over both arms is used where it is larger: a few units without an event have none of their own.
    """
    used = [s for s in strata if s.canary.n and s.control.n]
    canary, control = _merge([s.canary for s in used]), _merge([s.control for s in used])
    if not used:
        return NonInferiority(canary, control, silent="no step has units of both with an outcome")
    whole = sum(s.weight for s in used)
    difference = sum(s.weight * (s.canary.mean - s.control.mean) for s in used) / whole
    difference = difference if is_increase_better else -difference
    events = (_events(control), _events(canary)) if kind == "proportion" else None
    silent = silence(control.n, canary.n, events)
    error = math.sqrt(_variance(used, kind)) / whole
    if silent is None and error == 0.0:
        silent = "the values of neither arm vary"
    if silent is not None:
        return NonInferiority(canary, control, difference, silent=silent)
    n = canary.n + control.n
    below, above = (error * boundary(n, alpha, None)[0] for alpha in (alpha_pass, alpha_fail))
    return NonInferiority(canary, control, difference, difference - below, difference + above)


def _merge(moments: Sequence[Moments]) -> Moments:
    return reduce(Moments.merge, moments, Moments())


def _events(moments: Moments) -> int:
    return round(moments.mean * moments.n)


def _variance(used: Sequence[Stratum], kind: MetricKind) -> float:
    """Return Σ wₛ²·(v1/n1 + v0/n0)."""
    own = _summed(used, _within([s.canary for s in used]), _within([s.control for s in used]))
    if kind == "mean":
        return own
    pooled = _within([s.canary.merge(s.control) for s in used])
    return max(own, _summed(used, pooled, pooled))


def _within(groups: Sequence[Moments]) -> float:
    """Return the variance inside the groups, their means apart."""
    freedom = sum(group.n - 1 for group in groups)
    return sum(group.m2 for group in groups) / freedom if freedom > 0 else 0.0


def _summed(used: Sequence[Stratum], canary: float, control: float) -> float:
    return sum(s.weight**2 * (canary / s.canary.n + control / s.control.n) for s in used)
