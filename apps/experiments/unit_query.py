"""Builds the SQL over an experiment's units: which are in an arm, and their values of a metric."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from django.db import connection

from apps.experiments.columns import MetricColumns
from apps.experiments.models import Experiment, Metric
from apps.experiments.phases import WeightPhase


@dataclass(frozen=True)
class Scan:
    """The parameters of a query over one experiment's units, and its SQL over rows of exposures.

    `rows` is the name of a relation with the columns of `ExposureRow`; a rollout creates one from
    its own exposures (`rollout_units`).
    """

    experiment: Experiment
    names: tuple[str, ...]
    metrics: tuple[MetricColumns, ...]
    phases: tuple[WeightPhase, ...]
    now: datetime
    # The value that replaces a missing covariate: the mean of the others.
    missing: dict[int, float] = field(default_factory=dict)
    # Only units exposed from the phase with this index on.
    since: int = 0
    rows: str = "experiments_exposurerow"

    @property
    def parameters(self) -> dict[str, Any]:
        return {"experiment": self.experiment.pk, "now": self.now}

    @property
    def present(self) -> Scan:
        """The same query over the units of the current phase only."""
        return replace(self, since=len(self.phases) - 1)

    @property
    def phase(self) -> str:
        """The SQL of the index of the phase in which a unit was exposed."""
        starts = ",".join(f"'{phase.at.isoformat()}'" for phase in self.phases[1:])
        return f"width_bucket(at, ARRAY[{starts}]::timestamptz[])" if starts else "0"

    @property
    def moved(self) -> str:
        """The SQL condition for a unit that a change of weights affects.

        Its bucket moved after the exposure, or it was exposed while a change was taking effect.
        """
        ends = [phase.at for phase in self.phases[1:]]
        parts = [
            f"(at >= '{phase.at.isoformat()}'::timestamptz"
            f" AND at < '{phase.settled_at.isoformat()}'::timestamptz)"
            for phase in self.phases
            if phase.settled_at is not None
        ]
        for phase, end in zip(self.phases, ends, strict=False):
            if not phase.moved:
                continue
            ranges = ",".join(f"[{low},{high})" for low, high in phase.moved)
            exposed = f"at < '{end.isoformat()}'::timestamptz"
            if phase is not self.phases[0]:
                exposed += f" AND at >= '{phase.at.isoformat()}'::timestamptz"
            parts.append(f"({exposed} AND bucket::int <@ '{{{ranges}}}'::int4multirange)")
        return f"({' OR '.join(parts)})" if parts else "FALSE"

    @property
    def kept(self) -> str:
        """The SQL condition for a unit of this experiment that is in an arm."""
        condition = f"experiment_id = %(experiment)s AND NOT crossed_over AND NOT {self.moved}"
        if self.since:
            condition += f" AND at >= '{self.phases[self.since].at.isoformat()}'::timestamptz"
        return condition


def before(metric: MetricColumns) -> tuple[int, ...]:
    """Return the column indices of a metric's covariate."""
    return metric.places[len(metric.places) // 2 :] if metric.has_covariate else ()


def values(scan: Scan, columns: MetricColumns) -> list[str]:
    """Return the SQL of a unit's values of one metric: all of them, or all NULL."""
    metric = columns.metric
    now = columns.places[: len(columns.places) // 2] if columns.has_covariate else columns.places
    parts = [f"values[{now[0]}]"]
    if metric.missing_is_zero or metric.kind == Metric.Kind.RATIO:
        parts = [f"coalesce(values[{now[0]}], 0)"]
    if metric.cap is not None:
        parts = [f"least({parts[0]}, {metric.cap!r}::float8)"]
    if metric.kind == Metric.Kind.RATIO:
        parts.append(f"coalesce(values[{now[1]}], 0)")
    parts += [
        f"coalesce(values[{place}], {scan.missing.get(place, 0.0)!r}::float8)"
        for place in before(columns)
    ]
    conditions = []
    if metric.window_s is not None:
        conditions.append(f"at + interval '{metric.window_s} seconds' <= %(now)s")
    # A plain value is already NULL if it is missing.
    if not metric.missing_is_zero and parts != [f"values[{now[0]}]"]:
        conditions.append(f"values[{now[-1]}] IS NOT NULL")
    if not conditions:
        return parts
    return [f"CASE WHEN {' AND '.join(conditions)} THEN {value} END" for value in parts]


def fetch_rows(sql: str, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return list(cursor.fetchall())
