"""Computes the sufficient statistics of an experiment from its source of units' values.

The unit is the unit of randomisation and of analysis:

* a unit exposed to two variants is in no arm, nor is one whose bucket moved (`phases`);
* with an attribution window a unit counts once its window is closed;
* a unit without an outcome is in no mean, or counts as 0 if the metric says so;
* a value is winsorised at the metric's cap;
* a unit is compared with those exposed under the same weights (`stats.strata`); quantiles cover the
  units exposed under the current weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import reduce
from typing import TypeVar, cast

from apps.experiments.columns import MetricColumns, metric_columns, uses_of
from apps.experiments.distributions import Moments, Orders
from apps.experiments.models import Experiment, Metric, Variant
from apps.experiments.phases import WeightPhase, phases_of
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
    Stratum,
)
from apps.experiments.unit_query import Scan, before
from apps.experiments.warehouse import configured_source
from contract.routing import HOLDOUT

LEVELS_MAX = 50
OTHER_LEVELS = "(other)"

# The moments of each metric, in order, by variant and stratum, or by variant.
Cells = dict[tuple[str, Stratum], list[Comoments]]
Whole = dict[str, list[Comoments]]
Key = TypeVar("Key")


@dataclass(frozen=True)
class ExperimentStatistics:
    """The input of a result: the statistics, and counts of the units that are not in them.

    `unknown_variants` are units by variants that the experiment does not have.
    """

    data: ExperimentData
    crossed_over: int = 0
    moved: int = 0
    unknown_variants: dict[str, int] = field(default_factory=dict)
    holdout_units: int = 0
    holdout: dict[str, Comoments] = field(default_factory=dict)


def collect_statistics(
    experiment: Experiment, now: datetime, source: Source | None = None
) -> ExperimentStatistics:
    """Return the statistics of the experiment as of `now`, from `source` or the configured one."""
    source = source or configured_source()
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
    cells, levels = _cells(scan, source)
    whole = _whole(cells)
    metrics = _metrics_data(scan, source, cells, levels)
    data = ExperimentData(
        arms=tuple(ArmSpec(v.name, v.weight_bp, v.is_control) for v in variants),
        exposed={name: counted.exposed.get(name, 0) for name in scan.names},
        phases=tuple(
            Phase(
                {name: counted.by_phase.get((i, name), 0) for name in scan.names},
                phase.shares,
                phase.at,
                phase.weights_bp,
            )
            for i, phase in enumerate(scan.phases)
        ),
        metrics=metrics,
    )
    holdout_moments = {
        use.metric.name: whole[HOLDOUT][place] for place, use in enumerate(uses) if HOLDOUT in whole
    }
    return ExperimentStatistics(
        data,
        counted.crossed_over,
        counted.moved,
        {n: c for n, c in counted.exposed.items() if n not in {*scan.names, HOLDOUT}},
        counted.exposed.get(HOLDOUT, 0),
        holdout_moments,
    )


def collect_metrics(scan: Scan, source: Source) -> tuple[MetricData, ...]:
    """Return the statistics of the scan's metrics only, as the checks of a rollout need them."""
    scan = _with_missing(scan, source)
    return _metrics_data(scan, source, *_cells(scan, source))


def _phases(experiment: Experiment, variants: Sequence[Variant]) -> list[WeightPhase]:
    changes = list(experiment.weights.order_by("at", "id").values_list("at", "weights_bp"))
    if not changes:
        start = experiment.started_at or experiment.created_at
        changes = [(start, {variant.name: variant.weight_bp for variant in variants})]
    return phases_of([variant.name for variant in variants], changes)


# --- units by arm -------------------------------------------------------------------------


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
    """Return the scan with the values that replace a unit's missing covariate."""
    places = [p for metric in scan.metrics if metric.has_covariate for p in before(metric)]
    if not places:
        return scan
    means = source.missing_means(scan, places)
    missing = {place: mean or 0.0 for place, mean in zip(places, means, strict=True)}
    for metric in scan.metrics:
        if metric.metric.per_unit == Metric.PerUnit.SUM and metric.metric.kind == Metric.Kind.MEAN:
            missing |= dict.fromkeys(before(metric), 0.0)
    return replace(scan, missing=missing)


def _cells(scan: Scan, source: Source) -> tuple[Cells, dict[str, Cells]]:
    """Return the moments of all units, and those by dimension."""
    levels = {name: _moments(scan, source, name) for name in scan.experiment.dimensions}
    return next(iter(levels.values())) if levels else _moments(scan, source), levels


def _moments(scan: Scan, source: Source, dimension: str = "") -> Cells:
    """Return the moments by (variant, stratum).

    Levels beyond the LEVELS_MAX largest are pooled.
    """
    rows = source.level_moments(scan, dimension)
    units: dict[str, int] = {}
    for row in rows:
        units[row.level] = units.get(row.level, 0) + row.units
    top = set(sorted(units, key=lambda level: (-units[level], level))[:LEVELS_MAX])
    cells: Cells = {}
    for row in rows:
        level = row.level if row.level in top else OTHER_LEVELS
        _add(cells, (row.variant, Stratum(row.phase, level)), row.moments)
    return cells


def _whole(cells: Cells) -> Whole:
    """Return the moments of each variant, pooled over strata."""
    whole: Whole = {}
    for (name, _), row in sorted(cells.items()):
        _add(whole, name, row)
    return whole


def _add(into: dict[Key, list[Comoments]], key: Key, row: list[Comoments]) -> None:
    existing = into.get(key)
    into[key] = [a.merge(b) for a, b in zip(existing, row, strict=True)] if existing else row


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
        is_capped=metric.cap is not None,
    )


def _metrics_data(
    scan: Scan, source: Source, cells: Cells, levels: dict[str, Cells]
) -> tuple[MetricData, ...]:
    whole = _whole(cells)
    arms = [name for name in scan.names if name in whole]
    moments = {
        place: {name: whole[name][place] for name in arms} for place in range(len(scan.metrics))
    }
    orders = _order_statistics(scan, source, cells, moments)
    edges, counts = source.distributions(scan, moments)
    strata = _strata(scan, cells, levels)
    return tuple(
        MetricData(
            _spec(columns),
            {
                name: ArmData(
                    comoments=comoments,
                    order=orders.get((place, name)),
                    counts=counts.get((place, name), ()),
                    strata={at: row[place] for (arm, at), row in strata.items() if arm == name},
                )
                for name, comoments in moments[place].items()
            },
            edges.get(place, ()),
            {dimension: _by_level(scan, rows, place) for dimension, rows in levels.items()},
        )
        for place, columns in enumerate(scan.metrics)
    )


def _order_statistics(scan: Scan, source: Source, cells: Cells, moments: Moments) -> Orders:
    """Return the order statistics of the units of the current phase."""
    if len(scan.phases) == 1:
        return source.order_statistics(scan, moments)
    present = scan.present
    now = {key: row for key, row in cells.items() if key[1].phase == present.since}
    whole = _whole(now)
    return source.order_statistics(
        present,
        {
            place: {name: whole[name][place] for name in arms if name in whole}
            for place, arms in moments.items()
        },
    )


def _strata(scan: Scan, cells: Cells, levels: dict[str, Cells]) -> Cells:
    """Return the moments by the strata of estimates: phase, if there are several, and level."""
    if scan.experiment.stratify_by:
        return levels.get(scan.experiment.stratify_by, {})
    if len(scan.phases) == 1:
        return {}
    return _by_phase(cells)


def _by_phase(cells: Cells) -> Cells:
    merged: Cells = {}
    for (name, stratum), row in sorted(cells.items()):
        _add(merged, (name, Stratum(stratum.phase)), row)
    return merged


def _by_level(scan: Scan, cells: Cells, place: int) -> dict[str, dict[str, ArmData]]:
    """Return one metric's units by level, sorted by name, and by arm."""
    parts: dict[tuple[str, str], dict[Stratum, Comoments]] = {}
    for (arm, stratum), row in sorted(cells.items()):
        if arm in scan.names:
            phases = parts.setdefault((stratum.level, arm), {})
            phases[Stratum(stratum.phase)] = row[place]
    levels: dict[str, dict[str, ArmData]] = {}
    for (level, arm), phases in sorted(parts.items()):
        whole = reduce(Comoments.merge, phases.values())
        strata = phases if len(scan.phases) > 1 else {}
        levels.setdefault(level, {})[arm] = ArmData(whole, strata=strata)
    return levels
