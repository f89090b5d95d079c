"""Store the data planes' measurements and sketches of units.

Runs in the caller's transaction, which applies each batch once, so counts are simply added.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connection

from apps.experiments.models import Experiment, UnitCount
from apps.experiments.unit_sketches import from_signed, merge, to_signed
from apps.models.models import RegisteredModel
from contract.messages import UnitMeasurement, UnitSketch

UNIT_MAX = 200
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

ADD = """
    INSERT INTO experiments_measuredunit AS kept
        (experiment_id, unit, requests, errors, cache_hits, latency_us)
    SELECT * FROM unnest(
        %s::uuid[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[])
    ON CONFLICT (experiment_id, unit) DO UPDATE SET
        requests = kept.requests + excluded.requests,
        errors = kept.errors + excluded.errors,
        cache_hits = kept.cache_hits + excluded.cache_hits,
        latency_us = kept.latency_us + excluded.latency_us
"""
TOUCH = "INSERT INTO experiments_touchedunit (unit) SELECT * FROM unnest(%s::text[])"


def measure(measurements: Sequence[UnitMeasurement]) -> None:
    """Add measurements; those of unknown experiments or with invalid values are skipped."""
    if not measurements:
        return
    known = {str(pk) for pk in Experiment.objects.values_list("pk", flat=True)}
    added: dict[tuple[str, str], list[int]] = {}
    for each in measurements:
        counts = [each.requests, each.errors, each.cache_hits, each.latency_us]
        if each.experiment not in known or not _is_valid(each.unit, counts):
            continue
        total = added.setdefault((each.experiment, each.unit), [0, 0, 0, 0])
        for place, count in enumerate(counts):
            total[place] += count
    if not added:
        return
    keys = sorted(added)
    columns: list[list[Any]] = [
        [UUID(experiment) for experiment, _ in keys],
        [unit for _, unit in keys],
        *([added[key][place] for key in keys] for place in range(4)),
    ]
    with connection.cursor() as cursor:
        cursor.execute(ADD, columns)
        cursor.execute(TOUCH, [sorted({unit for _, unit in keys})])


def _is_valid(unit: str, counts: Sequence[int]) -> bool:
    return 0 < len(unit) <= UNIT_MAX and "\x00" not in unit and all(0 <= n < 2**40 for n in counts)


def count_units(sketches: Sequence[UnitSketch]) -> None:
    """Merge sketches into the stored ones of their model and hour; unknown models are skipped."""
    if not sketches:
        return
    names = {sketch.model for sketch in sketches}
    models = dict(RegisteredModel.objects.filter(name__in=names).values_list("name", "pk"))
    for sketch in sorted(sketches, key=lambda sketch: (sketch.model, sketch.hour)):
        if sketch.model not in models or not 0 <= sketch.hour < 10_000_000:
            continue
        hour = EPOCH + timedelta(hours=sketch.hour)
        row, _ = UnitCount.objects.select_for_update().get_or_create(
            model_id=models[sketch.model], hour=hour, defaults={"smallest": []}
        )
        merged = merge(from_signed(row.smallest), sketch.smallest)
        UnitCount.objects.filter(pk=row.pk).update(smallest=to_signed(merged))
