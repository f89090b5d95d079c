"""What the statistics need to know of one variant, and whether those numbers can be true."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from apps.experiments.stats.moments import Moments

Kind = Literal["proportion", "mean"]

# Beyond these a square or a ratio leaves the range of floats.
MEAN_MAX = 1e150
M2_MAX = 1e300


@dataclass(frozen=True)
class ArmSummary:
    """One variant's data for one metric, one value per unit.

    `mean` and `m2` as in `Moments`; for a proportion the mean is the rate of units with the event.
    `exposed_n` counts all units exposed to the variant, where only some of them have a value.
    """

    name: str
    weight_bp: int
    is_control: bool
    n: int
    mean: float
    m2: float = 0.0
    exposed_n: int | None = None

    @classmethod
    def of_moments(
        cls,
        name: str,
        weight_bp: int,
        moments: Moments,
        *,
        is_control: bool = False,
        exposed_n: int | None = None,
    ) -> ArmSummary:
        return cls(name, weight_bp, is_control, moments.n, moments.mean, moments.m2, exposed_n)

    @classmethod
    def of_events(
        cls,
        name: str,
        weight_bp: int,
        n: int,
        events: int,
        *,
        is_control: bool = False,
        exposed_n: int | None = None,
    ) -> ArmSummary:
        """`events` of `n` units had the event; more events than units come out as invalid data."""
        rate = events / n if n else (math.inf if events else 0.0)
        m2 = max(0.0, events * (1.0 - rate)) if n else 0.0
        return cls(name, weight_bp, is_control, n, rate, m2, exposed_n)

    @property
    def events(self) -> int:
        """Units with the event; only a proportion has them."""
        return round(self.mean * self.n)

    @property
    def moments(self) -> Moments:
        return Moments(self.n, self.mean, self.m2)

    @property
    def units(self) -> int:
        return self.n if self.exposed_n is None else self.exposed_n

    def why_invalid(self, kind: Kind) -> str | None:
        """Why these numbers cannot be anybody's outcomes, or None."""
        if self.n < 0 or self.units < self.n:
            return f"{self.n} units with a value of {self.units} exposed"
        if not (math.isfinite(self.mean) and math.isfinite(self.m2)):
            return "the outcomes are not all finite numbers"
        if self.m2 < 0.0 or self.m2 > M2_MAX or abs(self.mean) > MEAN_MAX:
            return "the outcomes are beyond what can be computed"
        if kind == "mean":
            return None
        if not 0.0 <= self.mean <= 1.0:
            return f"{self.mean * self.n:.6g} events of {self.n} units"
        if abs(self.mean * self.n - self.events) > 1e-3 + 1e-9 * self.n:
            return "the outcomes of a proportion must be 0 or 1"
        return None
