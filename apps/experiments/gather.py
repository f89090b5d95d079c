"""Sufficient statistics of an experiment, from whatever source has its units' values.

What counts, per unit, since the unit is what was randomised:

* a unit that met two variants, or whose bucket moved when weights changed (`phases`), is in no arm;
* with an attribution window a unit counts once its window is over, and not before;
* a unit without an outcome waits and is in no mean, or is 0 where the metric says so;
* a value counts as the metric's cap at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import cast

from apps.experiments.columns import MetricColumns, metric_columns, uses_of
from apps.experiments.models import Experiment, Metric, Variant
from apps.experiments.phases import WeightPhase, phases_of
from apps.experiments.scan import Scan, before
from apps.experiments.sources import PhaseCount, Source
from apps.experiments.stats.comoments import Comoments
from apps.experiments.stats.data import (
    ArmData,
    ArmSpec,
    ExperimentData,
    MetricData,
    MetricKind,
    MetricSpec,
    Phase,
    Role,
)
from apps.experiments.warehouse import the_source
from contract.routing import HOLDOUT

LEVELS_MAX = 50
OTHER_LEVELS = "(other)"

# The moments of each metric, in order, by (variant, level).
Levels = dict[tuple[str, str], list[Comoments]]


@dataclass(frozen=True)
class Gathered:
    """What a result is made of: the statistics, and counts of who is in none of them."""

    data: ExperimentData
    crossed_over: int = 0
    moved: int = 0
    strangers: dict[str, int] = field(default_factory=dict)
    holdout_units: int = 0
    holdout: dict[str, Comoments] = field(default_factory=dict)


def gather(experiment: Experiment, now: datetime, source: Source | None = None) -> Gathered:
    """Return what was seen of the experiment until now, by `source` or the installation's own."""
    source = source or the_source()
    variants = list(experiment.variants.order_by("position"))
    uses = uses_of(experiment)
    scan = Scan(
        experiment,
        tuple(variant.name for variant in variants),
        tuple(metric_columns(experiment, uses)),
        tuple(_phases(experiment, variants)),
        now,
    )
    scan = _with_missing(scan, source)
    counted = _count(source.phase_counts(scan))
    whole, levels = _levels(scan, source)
    metrics = _metrics_data(scan, source, whole, levels)
    data = ExperimentData(
        arms=tuple(ArmSpec(v.name, v.weight_bp, v.is_control) for v in variants),
        exposed={name: counted.exposed.get(name, 0) for name in scan.names},
        phases=tuple(
            Phase({name: counted.by_phase.get((i, name), 0) for name in scan.names}, phase.shares)
            for i, phase in enumerate(scan.phases)
        ),
        metrics=metrics,
    )
    held = {
        use.metric.name: whole[HOLDOUT, ""][place]
        for place, use in enumerate(uses)
        if (HOLDOUT, "") in whole
    }
    return Gathered(
        data,
        counted.crossed_over,
        counted.moved,
        {n: c for n, c in counted.exposed.items() if n not in {*scan.names, HOLDOUT}},
        counted.exposed.get(HOLDOUT, 0),
        held,
    )


def metrics_of(scan: Scan, source: Source) -> tuple[MetricData, ...]:
    """Return the statistics of the scan's metrics alone: all that a rollout's check needs."""
    scan = _with_missing(scan, source)
    return _metrics_data(scan, source, *_levels(scan, source))


def _phases(experiment: Experiment, variants: Sequence[Variant]) -> list[WeightPhase]:
    changes = list(experiment.weights.order_by("at", "id").values_list("at", "weights_bp"))
    if not changes:
        start = experiment.started_at or experiment.created_at
        changes = [(start, {variant.name: variant.weight_bp for variant in variants})]
    return phases_of([variant.name for variant in variants], changes)


# --- who is in which arm -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Counted:
    exposed: dict[str, int]
    by_phase: dict[tuple[int, str], int]
    crossed_over: int
    moved: int


def _count(rows: Sequence[PhaseCount]) -> _Counted:
    exposed: dict[str, int] = {}
    for row in rows:
        exposed[row.variant] = exposed.get(row.variant, 0) + row.kept
    return _Counted(
        {name: units for name, units in exposed.items() if units},
        {(row.phase, row.variant): row.kept for row in rows},
        sum(row.crossed_over for row in rows),
        sum(row.moved for row in rows),
    )


# --- moments -------------------------------------------------------------------------------------


def _with_missing(scan: Scan, source: Source) -> Scan:
    """Look up what stands in for a covariate that a unit has not."""
    places = [p for metric in scan.metrics if metric.has_covariate for p in before(metric)]
    if not places:
        return scan
    means = source.missing_means(scan, places)
    missing = {place: mean or 0.0 for place, mean in zip(places, means, strict=True)}
    for metric in scan.metrics:
        if metric.metric.per_unit == Metric.PerUnit.SUM and metric.metric.kind == Metric.Kind.MEAN:
            missing |= dict.fromkeys(before(metric), 0.0)
    return replace(scan, missing=missing)


def _levels(scan: Scan, source: Source) -> tuple[Levels, dict[str, Levels]]:
    """Return the moments of all units, and by level of each dimension."""
    levels = {name: _moments(scan, source, name) for name in scan.experiment.dimensions}
    whole = _whole(next(iter(levels.values()))) if levels else _moments(scan, source)
    return whole, levels


def _moments(scan: Scan, source: Source, dimension: str = "") -> Levels:
    """Return the moments by (variant, level); levels with the fewest units are put together, so
    that a page can show the rest.
    """
    rows = source.level_moments(scan, dimension)
    units: dict[str, int] = {}
    for row in rows:
        units[row.level] = units.get(row.level, 0) + row.units
    top = set(sorted(units, key=lambda level: (-units[level], level))[:LEVELS_MAX])
    found: Levels = {}
    for row in rows:
        level = row.level if row.level in top else OTHER_LEVELS
        known = found.get((row.variant, level))
        merged = [a.merge(b) for a, b in zip(known or (), row.moments, strict=bool(known))]
        found[row.variant, level] = merged or row.moments
    return found


def _whole(levels: Levels) -> Levels:
    """Return the moments of all levels together, under the empty level."""
    found: Levels = {}
    for (name, _), row in sorted(levels.items()):
        known = found.get((name, ""))
        merged = [a.merge(b) for a, b in zip(known, row, strict=True)] if known else row
        found[name, ""] = merged
    return found


# --- metrics -------------------------------------------------------------------------------


def _spec(columns: MetricColumns) -> MetricSpec:
    metric = columns.metric
    return MetricSpec(
        name=metric.name,
        role=cast(Role, columns.use.role),
        kind=cast(MetricKind, str(metric.kind)),
        is_increase_better=metric.direction == Metric.Direction.INCREASE,
        margin=columns.use.margin,
        quantile=metric.quantile_ppm / 1_000_000 if metric.quantile_ppm else None,
        has_covariate=columns.has_covariate,
        mann_whitney=columns.use.mann_whitney,
    )


def _metrics_data(
    scan: Scan, source: Source, whole: Levels, levels: dict[str, Levels]
) -> tuple[MetricData, ...]:
    arms = [name for name in scan.names if (name, "") in whole]
    moments = {
        place: {name: whole[name, ""][place] for name in arms} for place in range(len(scan.metrics))
    }
    orders = source.order_statistics(scan, moments)
    edges, counts = source.distributions(scan, moments)
    strata = levels.get(scan.experiment.stratify_by, {})
    return tuple(
        MetricData(
            _spec(columns),
            {
                name: ArmData(
                    comoments=found,
                    order=orders.get((place, name)),
                    counts=counts.get((place, name), ()),
                    strata={lv: row[place] for (arm, lv), row in strata.items() if arm == name},
                )
                for name, found in moments[place].items()
            },
            edges.get(place, ()),
            {dimension: _by_level(scan, rows, place) for dimension, rows in levels.items()},
        )
        for place, columns in enumerate(scan.metrics)
    )


def _by_level(scan: Scan, rows: Levels, place: int) -> dict[str, dict[str, Comoments]]:
    """Return one metric's moments by level, in the order of their names, and arm."""
    found: dict[str, dict[str, Comoments]] = {}
    for (arm, level), row in sorted(rows.items(), key=lambda item: item[0][1]):
        if arm in scan.names:
            found.setdefault(level, {})[arm] = row[place]
    return found
