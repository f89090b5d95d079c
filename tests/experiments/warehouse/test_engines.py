"""The warehouse's questions on other engines than DuckDB: run where they are, written for all."""

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
from tests.experiments.warehouse.engines import BROUGHT, HERE

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


# What the engines' own clients warn of, or leave open, is theirs.
@pytest.mark.filterwarnings("ignore")
@ONE_SEED
@pytest.mark.parametrize("engine", HERE)
def test_an_engine_says_the_same_as_postgresql(
    experiment: Experiment, files: Exported, engine: str
) -> None:
    _, opened = BROUGHT[engine]

    all_same(
        collect_statistics(experiment, LATER, Postgres()),
        collect_statistics(experiment, LATER, opened(files)),
    )


@pytest.mark.parametrize("engine", ["duckdb", "databricks", "trino", "bigquery", "clickhouse"])
def test_every_question_is_written_for_each_engine(bare: Experiment, engine: str) -> None:
    tables = Tables(*(ibis.table(schema, name=name) for name, schema in SCHEMAS.items()))
    columns = tuple(metric_columns(bare, uses_of(bare)))
    changes = [(NOW, {"weak": 5_000, "strong": 5_000}), (LATER, {"weak": 9_000, "strong": 1_000})]
    phases = tuple(phases_of(["weak", "strong"], changes))
    scan = Scan(bare, ("weak", "strong"), columns, phases, LATER, {2: 0.5})
    units = units_of(scan, tables)
    seen, names = queries.select_values(units, scan, "x-country")
    asked = [
        queries.missing_means(units, [2]),
        queries.phase_counts(units, scan),
        queries.level_sums(seen, names),
        queries.values_at_ranks(seen, names[3][0], {"weak": [3, 9], "strong": [5]}),
        queries.count_bins(seen, names[1][0], [1e6, 2e6]),
    ]

    for question in asked:
        assert "exposures" in str(ibis.to_sql(question, dialect=engine))
