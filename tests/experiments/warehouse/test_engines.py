"""The warehouse's queries on other engines: executed if available, translated for all."""

from __future__ import annotations

import ibis
import pytest

from apps.experiments.columns import metric_columns, uses_of
from apps.experiments.models import Experiment
from apps.experiments.phases import phases_of
from apps.experiments.postgres import Postgres
from apps.experiments.sufficient_statistics import collect_statistics
from apps.experiments.unit_query import Scan
from apps.experiments.warehouse import queries
from apps.experiments.warehouse.export import Exported
from apps.experiments.warehouse.units import Tables, units_of
from tests.experiments.factories import NOW
from tests.experiments.warehouse.agreement import LATER, ONE_SEED, all_same
from tests.experiments.warehouse.engines import AVAILABLE, ENGINES

pytestmark = pytest.mark.django_db
SCHEMAS = {
    "exposures": {"experiment": "string", "unit": "string", "variant": "string",
                  "at": "timestamp('UTC')", "crossed_over": "boolean", "bucket": "int64",
                  "tenant": "string", "x-country": "string"},
    "outcomes": {"event_id": "string", "unit": "string", "metric": "string",
                 "value": "float64", "occurred_at": "timestamp('UTC')"},
    "measured": {"experiment": "string", "unit": "string", "requests": "int64",
                 "errors": "int64", "cache_hits": "int64", "latency_us": "int64"},
}  # fmt: skip


# Warnings and open resources of the engines' clients are not ours.
@pytest.mark.filterwarnings("ignore")
@ONE_SEED
@pytest.mark.parametrize("engine", AVAILABLE)
def test_an_engine_agrees_with_postgresql(
    experiment: Experiment, files: Exported, engine: str
) -> None:
    _, opened = ENGINES[engine]

    all_same(
        collect_statistics(experiment, LATER, Postgres()),
        collect_statistics(experiment, LATER, opened(files)),
    )


@pytest.mark.parametrize("engine", ["duckdb", "databricks", "trino", "bigquery", "clickhouse"])
def test_every_query_translates_for_each_engine(bare: Experiment, engine: str) -> None:
    tables = Tables(*(ibis.table(schema, name=name) for name, schema in SCHEMAS.items()))
    columns = tuple(metric_columns(bare, uses_of(bare)))
    changes = [(NOW, {"weak": 5_000, "strong": 5_000}), (LATER, {"weak": 9_000, "strong": 1_000})]
    phases = tuple(phases_of(["weak", "strong"], changes))
    scan = Scan(bare, ("weak", "strong"), columns, phases, LATER, {2: 0.5})
    units = units_of(scan, tables)
    values, names = queries.select_values(units, scan, "x-country")
    queries_to_translate = [
        queries.missing_means(units, [2]),
        queries.phase_counts(units, scan),
        queries.level_sums(values, names),
        queries.values_at_ranks(values, names[3][0], {"weak": [3, 9], "strong": [5]}),
        queries.count_bins(values, names[1][0], [1e6, 2e6]),
    ]

    for query in queries_to_translate:
        assert "exposures" in str(ibis.to_sql(query, dialect=engine))
