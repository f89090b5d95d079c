"""Define the interface of the sources that supply an experiment's statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from apps.experiments.attribution import Attribution, SentMetric
from apps.experiments.distributions import Counts, Edges, Moments, Orders
from apps.experiments.models import Experiment
from apps.experiments.stats.comoments import Comoments
from apps.experiments.unit_query import Scan


@dataclass(frozen=True)
class PhaseCount:
    """Units first exposed to a variant in a phase (by its place): counted and excluded ones."""

    variant: str
    phase: int
    kept: int
    crossed_over: int
    moved: int


@dataclass(frozen=True)
class LevelMoments:
    """Units exposed to a variant in a phase, at a level, with the co-moments of each metric of the
    scan, in order.
    """

    variant: str
    phase: int
    level: str
    units: int
    moments: list[Comoments]


class Source(Protocol):
    """Returns sufficient statistics of the units that `scan` selects."""

    def missing_means(self, scan: Scan, places: Sequence[int]) -> list[float | None]:
        """Return the mean of each of those values over the units that have one."""

    def phase_counts(self, scan: Scan) -> list[PhaseCount]:
        """Return the number of units exposed to each variant in each phase."""

    def level_moments(self, scan: Scan, dimension: str) -> list[LevelMoments]:
        """Return moments by variant, phase and level; without a dimension the level is empty."""

    def order_statistics(self, scan: Scan, moments: Moments) -> Orders:
        """Return the order statistics of quantile metrics, by metric and arm."""

    def distributions(self, scan: Scan, moments: Moments) -> tuple[Edges, Counts]:
        """Return each metric's edges, and its arms' units per bin."""

    def attributions(self, experiment: Experiment, sent: Sequence[SentMetric]) -> list[Attribution]:
        """Return the attribution of each metric's outcomes to exposures, in the order of `sent`."""
