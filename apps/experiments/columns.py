"""Define the columns of `ExposureRow.values`.

For each metric of the experiment, in order: its value y, for a ratio also the denominator d, and
with a covariate the same values from the time before the exposure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from apps.experiments.models import Experiment, Metric, MetricUse


@dataclass(frozen=True)
class Column:
    """One value per unit. `is_before` marks a covariate, `is_denominator` a ratio's d."""

    metric: Metric
    is_denominator: bool = False
    is_before: bool = False


@dataclass(frozen=True)
class MetricColumns:
    """A metric with the places of its values, in the order of `stats.data.MetricSpec`.

    Places count from 1, as in PostgreSQL arrays.
    """

    use: MetricUse
    places: tuple[int, ...]

    @property
    def metric(self) -> Metric:
        return self.use.metric

    @property
    def has_covariate(self) -> bool:
        return len(self.places) > (2 if self.metric.kind == Metric.Kind.RATIO else 1)


def uses_of(experiment: Experiment) -> list[MetricUse]:
    """Return the experiment's metrics, the primary one first."""
    rows = experiment.metric_uses.select_related("metric__outcomes_of", "metric__divided_by")
    return list(rows.order_by("position"))


def columns_of(experiment: Experiment, uses: Sequence[MetricUse]) -> list[Column]:
    """Return the columns of the experiment's units, in the order of their places."""
    return [column for use in uses for column in _columns(experiment, use.metric)]


def metric_columns(experiment: Experiment, uses: Sequence[MetricUse]) -> list[MetricColumns]:
    """Return the places of each metric's values."""
    result, place = [], 1
    for use in uses:
        width = len(_columns(experiment, use.metric))
        result.append(MetricColumns(use, tuple(range(place, place + width))))
        place += width
    return result


def can_have_covariate(metric: Metric) -> bool:
    """Return whether values before an exposure exist: data planes measure only after it."""
    is_sent = metric.source == Metric.Source.OUTCOMES
    return is_sent and metric.kind in {Metric.Kind.MEAN, Metric.Kind.RATIO}


def _columns(experiment: Experiment, metric: Metric) -> list[Column]:
    parts = [False, True] if metric.kind == Metric.Kind.RATIO else [False]
    times = [False, True] if experiment.covariate_s and can_have_covariate(metric) else [False]
    return [Column(metric, is_denominator, before) for before in times for is_denominator in parts]
