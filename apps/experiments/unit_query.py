"""What an experiment asks its units: which of them are in an arm, and their values of a metric."""

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
    """One experiment's question to its units. Its SQL is of rows of exposures.

    `rows` names them: a relation with the columns of `ExposureRow`, which a rollout makes of its
    own exposures (`rollout_units`).
    """

    experiment: Experiment
    names: tuple[str, ...]
    metrics: tuple[MetricColumns, ...]
    phases: tuple[WeightPhase, ...]
    now: datetime
    # Of a covariate that is missing: the mean of those that are not.
    missing: dict[int, float] = field(default_factory=dict)
    # Only units that were exposed from this phase on, by its place.
    since: int = 0
    rows: str = "experiments_exposurerow"

    @property
    def parameters(self) -> dict[str, Any]:
        return {"experiment": self.experiment.pk, "now": self.now}

    @property
    def present(self) -> Scan:
        """The same question to the units of the present phase alone."""
        return replace(self, since=len(self.phases) - 1)

    @property
    def phase(self) -> str:
        """The phase in which a unit was exposed, by its place."""
        starts = ",".join(f"'{phase.at.isoformat()}'" for phase in self.phases[1:])
        return f"width_bucket(at, ARRAY[{starts}]::timestamptz[])" if starts else "0"

    @property
    def moved(self) -> str:
        """The condition that a unit's bucket moved after it was met, or that it was met while a
        change of weights was being taken in.
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
            met = f"at < '{end.isoformat()}'::timestamptz"
            if phase is not self.phases[0]:
                met += f" AND at >= '{phase.at.isoformat()}'::timestamptz"
            parts.append(f"({met} AND bucket::int <@ '{{{ranges}}}'::int4multirange)")
        return f"({' OR '.join(parts)})" if parts else "FALSE"

    @property
    def kept(self) -> str:
        """The condition that a unit of this experiment is in an arm."""
        found = f"experiment_id = %(experiment)s AND NOT crossed_over AND NOT {self.moved}"
        if self.since:
            found += f" AND at >= '{self.phases[self.since].at.isoformat()}'::timestamptz"
        return found


def before(metric: MetricColumns) -> tuple[int, ...]:
    """Return the places of a metric's covariate."""
    return metric.places[len(metric.places) // 2 :] if metric.has_covariate else ()


def values(scan: Scan, columns: MetricColumns) -> list[str]:
    """Return the SQL of a unit's values of one metric: all of them, or all NULL."""
    metric = columns.metric
    now = columns.places[: len(columns.places) // 2] if columns.has_covariate else columns.places
    found = [f"values[{now[0]}]"]
    if metric.missing_is_zero or metric.kind == Metric.Kind.RATIO:
        found = [f"coalesce(values[{now[0]}], 0)"]
    if metric.cap is not None:
        found = [f"least({found[0]}, {metric.cap!r}::float8)"]
    if metric.kind == Metric.Kind.RATIO:
        found.append(f"coalesce(values[{now[1]}], 0)")
    found += [
        f"coalesce(values[{place}], {scan.missing.get(place, 0.0)!r}::float8)"
        for place in before(columns)
    ]
    conditions = []
    if metric.window_s is not None:
        conditions.append(f"at + interval '{metric.window_s} seconds' <= %(now)s")
    # A bare value is NULL by itself where there is none.
    if not metric.missing_is_zero and found != [f"values[{now[0]}]"]:
        conditions.append(f"values[{now[-1]}] IS NOT NULL")
    if not conditions:
        return found
    return [f"CASE WHEN {' AND '.join(conditions)} THEN {value} END" for value in found]


def fetch_rows(sql: str, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Return what PostgreSQL answers."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return list(cursor.fetchall())
