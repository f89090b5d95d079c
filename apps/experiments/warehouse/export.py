"""Exports an experiment's raw rows as Parquet files, for a warehouse or a notebook.

PostgreSQL writes CSV, and DuckDB converts it to Parquet. Neither holds the rows in memory, and
floats keep all digits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import duckdb
from django.db import connection
from psycopg import sql

from apps.experiments.columns import columns_of, uses_of
from apps.experiments.lifecycle import TENANT
from apps.experiments.models import Experiment
from apps.experiments.tenant_scope import COUNTS_FOR
from apps.experiments.unit_values import sent_as

EXPOSURES = """
    SELECT {name} AS experiment, unit, variant_name AS variant, at, crossed_over, bucket, tenant
        {dimensions}
    FROM experiments_exposurerow WHERE experiment_id = {pk}
"""
OUTCOMES = """
    SELECT event_id, outcome.unit, metric.name AS metric, value, occurred_at
    FROM experiments_outcomerow AS outcome JOIN experiments_metric AS metric
        ON metric.id = outcome.metric_id
    WHERE metric_id = ANY({metrics}) AND EXISTS (
        SELECT 1 FROM experiments_exposurerow AS exposed
        WHERE exposed.experiment_id = {pk} AND exposed.unit = outcome.unit AND {counts_for}
    )
"""
MEASURED = """
    SELECT {name} AS experiment, unit, requests, errors, cache_hits, latency_us
    FROM experiments_measuredunit WHERE experiment_id = {pk}
"""
EXPOSURE_TYPES = {
    "experiment": "VARCHAR", "unit": "VARCHAR", "variant": "VARCHAR", "at": "TIMESTAMPTZ",
    "crossed_over": "BOOLEAN", "bucket": "SMALLINT", "tenant": "VARCHAR",
}  # fmt: skip
OUTCOME_TYPES = {
    "event_id": "VARCHAR", "unit": "VARCHAR", "metric": "VARCHAR", "value": "DOUBLE",
    "occurred_at": "TIMESTAMPTZ",
}  # fmt: skip
MEASURED_TYPES = {
    "experiment": "VARCHAR", "unit": "VARCHAR", "requests": "BIGINT", "errors": "BIGINT",
    "cache_hits": "BIGINT", "latency_us": "BIGINT",
}  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """The files of an export."""

    exposures: Path
    outcomes: Path
    measured: Path


def export_parquet(experiment: Experiment, directory: Path) -> Exported:
    """Write the experiment's exposures, outcomes and measurements into `directory`.

    Exposures have a column for each header among its dimensions. An existing file is replaced
    atomically. Raises OSError if the directory is not writable.
    """
    directory.mkdir(parents=True, exist_ok=True)
    name, pk = sql.Literal(experiment.name), sql.Literal(experiment.pk)
    headers = [header for header in experiment.dimensions if header != TENANT]
    dimensions = sql.SQL("").join(
        sql.SQL(", attributes ->> {} AS {}").format(sql.Literal(header), sql.Identifier(header))
        for header in headers
    )
    sent = {sent_as(column).pk for column in columns_of(experiment, uses_of(experiment))}
    files = Exported(
        *(directory / f"{each}.parquet" for each in ("exposures", "outcomes", "measured"))
    )
    types = EXPOSURE_TYPES | dict.fromkeys(headers, "VARCHAR")
    exposures = sql.SQL(EXPOSURES).format(name=name, pk=pk, dimensions=dimensions)
    _write(exposures, types, files.exposures)
    metrics = sql.Literal(sorted(sent))
    model = sql.Literal(experiment.model.name)
    counts_for = sql.SQL(COUNTS_FOR.replace("%(model)s", "{model}")).format(model=model)
    outcomes = sql.SQL(OUTCOMES).format(metrics=metrics, pk=pk, counts_for=counts_for)
    _write(outcomes, OUTCOME_TYPES, files.outcomes)
    _write(sql.SQL(MEASURED).format(name=name, pk=pk), MEASURED_TYPES, files.measured)
    return files


def _write(query: sql.Composed, types: Mapping[str, str], path: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".csv") as rows:
        with (
            connection.cursor() as cursor,
            cursor.copy(sql.SQL("COPY ({}) TO STDOUT (FORMAT csv, HEADER)").format(query)) as copy,
        ):
            for data in copy:
                rows.write(data)
        rows.flush()
        partial = path.with_suffix(".part")
        with duckdb.connect() as engine:
            engine.execute("SET TimeZone = 'UTC'")
            table = engine.read_csv(
                rows.name, header=True, dtype=dict(types), delimiter=",", quotechar='"',
                escapechar='"', allow_quoted_nulls=False, parallel=False,
            )  # fmt: skip
            table.write_parquet(str(partial), compression="zstd")
        partial.replace(path)
