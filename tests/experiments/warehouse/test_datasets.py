"""Errors for an unavailable warehouse and for invalid datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest

from apps.experiments.models import Experiment, MeasuredUnit, Metric
from apps.experiments.results import compute_result
from apps.experiments.warehouse.export import export_parquet
from apps.experiments.warehouse.source import connect
from apps.lib.errors import Unavailable
from tests.experiments.factories import expose, observe
from tests.experiments.warehouse.agreement import LATER

pytestmark = pytest.mark.django_db


def test_an_unavailable_warehouse_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="warehouse does not answer"):
        connect("duckdb://", exposures=str(tmp_path / "no.parquet"), outcomes="none")


BROKEN = [
    ("exposures", "SELECT * FROM t UNION ALL SELECT * FROM t", "each unit must have one"),
    ("measured", "SELECT * FROM t UNION ALL SELECT * FROM t", "each unit must have one"),
    (
        "outcomes",
        "SELECT * REPLACE (NULL::VARCHAR AS event_id) FROM t",
        "without a value in 'event_id'",
    ),
    ("exposures", "SELECT * EXCLUDE (bucket) FROM t", "has no column 'bucket'"),
    (
        "exposures",
        'SELECT * EXCLUDE ("x-country") FROM t',
        "no column for the dimension 'x-country'",
    ),
    ("exposures", 'SELECT * REPLACE ("at"::VARCHAR AS "at") FROM t', "'at' must be a timestamp"),
    (
        "outcomes",
        "SELECT * REPLACE (now()::TIMESTAMP AS occurred_at) FROM t",
        "must be a timestamp",
    ),
    ("outcomes", "SELECT * REPLACE (1 AS unit) FROM t", "'unit' must be text"),
]


@pytest.mark.parametrize(("dataset", "query", "message"), BROKEN)
def test_an_invalid_dataset_is_rejected_and_the_result_says_why(
    bare: Experiment, settings: Any, tmp_path: Path, dataset: str, query: str, message: str
) -> None:
    expose(bare, "u", "weak", attributes={"x-country": "ch"})
    observe(Metric.objects.get(name="clicked"), "u", 1.0)
    MeasuredUnit.objects.create(experiment=bare, unit="u", requests=1)
    path = getattr(export_parquet(bare, tmp_path), dataset)
    with duckdb.connect() as engine:
        engine.execute(f"CREATE TABLE t AS SELECT * FROM read_parquet('{path}')")
        engine.execute(f"COPY ({query}) TO '{path}' (FORMAT parquet)")
    settings.WAREHOUSE_URL = "duckdb://"
    for name in ("exposures", "outcomes", "measured"):
        setattr(settings, f"WAREHOUSE_{name.upper()}", str(tmp_path / f"{name}.parquet"))

    computed = compute_result(bare, LATER)

    assert computed.result is None
    assert message in computed.error


def test_without_the_warehouse_the_last_result_stands_and_the_error_says_why(
    bare: Experiment, settings: Any, tmp_path: Path
) -> None:
    settings.WAREHOUSE_URL = "duckdb://"
    settings.WAREHOUSE_EXPOSURES = str(tmp_path / "gone.parquet")

    computed = compute_result(bare, LATER)

    assert computed.result is None
    assert "warehouse does not answer" in computed.error
