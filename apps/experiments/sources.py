"""Where an experiment's statistics come from: what every source answers, and which one is asked."""

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
    """Units of a variant first met in a phase (by its place): those that count, and the others."""

    variant: str
    phase: int
    kept: int
    crossed_over: int
    moved: int


@dataclass(frozen=True)
class LevelMoments:
    """Units of a variant that met it in a phase, at a level, and the co-moments of each metric of
    the scan, in order.
    """

    variant: str
    phase: int
    level: str
    units: int
    moments: list[Comoments]


class Source(Protocol):
    """Answers in sufficient statistics. All answers are of the units that `scan` means."""

    def missing_means(self, scan: Scan, places: Sequence[int]) -> list[float | None]:
        """Return the mean of each of those values over the units that have one."""

    def phase_counts(self, scan: Scan) -> list[PhaseCount]:
        """Return how many units met each variant in each phase."""

    def level_moments(self, scan: Scan, dimension: str) -> list[LevelMoments]:
        """Return moments by variant, phase and level; without a dimension the level is empty."""

    def order_statistics(self, scan: Scan, moments: Moments) -> Orders:
        """Return the order statistics of quantile metrics, by metric and arm."""

    def distributions(self, scan: Scan, moments: Moments) -> tuple[Edges, Counts]:
        """Return each metric's edges, and its arms' units per bin."""

    def attributions(self, experiment: Experiment, sent: Sequence[SentMetric]) -> list[Attribution]:
        """Return, for each of these metrics, which of its outcomes belong to an exposure."""
